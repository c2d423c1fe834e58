"""Distances of points to a density in the plane: MMD, energy, sliced Wasserstein, a classifier, Stein's"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from gentk.recipe.schema import Section

DONE_BY = "_distances"


class Config(Section):
    """Settings of the distances."""

    name: Literal["points"]
    n: PositiveInt | None = Field(None, description="points measured; null: all of a file, 10,000 of a model")
    most: PositiveInt = Field(
        5000, description="points of each side used, the first ones; the work grows as its square"
    )
    directions: PositiveInt = Field(500, description="directions of the sliced Wasserstein distance")
    steps: PositiveInt = Field(18, description="Heun steps for a many-step model: NFE = 2 steps - 1")
