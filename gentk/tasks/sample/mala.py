"""Metropolis-adjusted Langevin chains on a density."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from gentk.recipe.schema import Section

KIND = "target"


class Config(Section):
    """Settings of the chains."""

    name: Literal["mala"]
    chains: PositiveInt = Field(100, description="chains side by side; n samples are n / chains draws of each")
    start: PositiveFloat = Field(1.0, description="standard deviation of the normal points that they start from")
    warmup: NonNegativeInt = Field(500, description="transitions before the first draw")
    thin: PositiveInt = Field(10, description="transitions per draw")
    step_size: PositiveFloat = Field(0.1, description="variance of a step's noise, before the warm-up tunes it")
    target_accept: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.574, description="acceptance that the warm-up tunes the step size for; null: keep step_size"
    )
