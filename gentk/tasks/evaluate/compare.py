"""Differences between two finished evaluations, with paired intervals."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from gentk.recipe.schema import Section

DONE_BY = "_comparing"
NEEDS = None


class Config(Section):
    """Settings of the comparison."""

    name: Literal["compare"]
    against: str = Field(description="the other evaluation: its run folder or result.json")
    resamples: PositiveInt = Field(2000, description="bootstrap resamples behind the intervals of means over samples")
