"""Unadjusted Langevin chains on a density: fast, biased by the step size."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from gentk.recipe.schema import Section

KIND = "target"


class Config(Section):
    """Settings of the chains."""

    name: Literal["ula"]
    chains: PositiveInt = Field(100, description="chains side by side; n samples are n / chains draws of each")
    start: PositiveFloat = Field(1.0, description="standard deviation of the normal points that they start from")
    warmup: NonNegativeInt = Field(500, description="transitions before the first draw")
    thin: PositiveInt = Field(10, description="transitions per draw")
    step_size: PositiveFloat = Field(0.01, description="variance of a step's noise; the bias is of its order")
