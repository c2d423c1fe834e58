"""Ancestral sampling of DDPM (arXiv:2006.11239)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gentk.recipe.schema import Section

KIND = "denoiser"


class Config(Section):
    """Settings of the solver."""

    name: Literal["ancestral"]
    variance: Literal["small", "large"] = Field(
        "small", description="noise of a step: of the posterior (also k-diffusion's Euler ancestral), or DDPM's beta"
    )
