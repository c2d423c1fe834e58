"""DDIM with any part of its noise new (arXiv:2010.02502)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gentk.recipe.schema import Fraction, Section

KIND = "denoiser"


class Config(Section):
    """Settings of the solver."""

    name: Literal["ddim"]
    eta: Fraction = Field(0.0, description="part of the noise that is new: 0 deterministic, 1 ancestral sampling")
