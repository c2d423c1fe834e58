"""Langevin chains down the noise levels of a time-dependent energy (a run of train-ebm)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from gentk.recipe.schema import Section

KIND = "energy"


class Config(Section):
    """Settings of the chains."""

    name: Literal["annealed-langevin"]
    levels: PositiveInt = Field(15, description="noise levels, each the same multiple of the next")
    steps: PositiveInt = Field(10, description="transitions at each level")
    step_size: Annotated[float, Field(gt=0, lt=4)] = Field(0.15, description="variance of a step's noise over t^2")
    longer: NonNegativeInt = Field(
        0, description="go on at the smallest level for so many times the chain's length: who was near the law stays"
    )
    clean: bool = Field(True, description="take the smallest level's noise away by one gradient at the end")
