"""EDM's stochastic sampler: noise put in before every Heun step (arXiv:2206.00364, algorithm 2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from gentk.recipe.schema import Section

KIND = "denoiser"


class Config(Section):
    """Settings of the solver."""

    name: Literal["edm-stochastic"]
    s_churn: NonNegativeFloat = Field(40.0, description="how much noise, over all steps; 0 is Heun's method")
    s_min: NonNegativeFloat = Field(0.05, description="smallest noise level at which it is put in")
    s_max: PositiveFloat = Field(50.0, description="largest noise level at which it is put in")
    s_noise: PositiveFloat = Field(1.003, description="its scale")
