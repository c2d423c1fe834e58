"""Null-space denoising (DDNM+, arXiv:2212.00490): what was measured is kept, the model fills in the rest."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gentk.recipe.schema import Fraction, Section


class Config(Section):
    """Settings of the restorer."""

    name: Literal["ddnm"]
    eta: Fraction = Field(0.85, description="part of each level's noise that is fresh")
