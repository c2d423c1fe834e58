"""Euler's method on the probability-flow ODE: NFE = steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from gentk.recipe.schema import Section, Warp

KIND = "denoiser"


class Config(Section):
    """Settings of the solver and its grid."""

    name: Literal["euler"]
    steps: PositiveInt = Field(35, description="steps of the grid")
    sigma_min: PositiveFloat = Field(0.002, description="smallest noise level before 0, as a noise-to-signal ratio")
    sigma_max: PositiveFloat = Field(80.0, description="noise level of the start, as a noise-to-signal ratio")
    rho: Warp = Field(7.0, description="warp of the grid")
