"""The section of time series: windows of context and horizon, their split and their scale."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from gentk.recipe.section import Section


class Series(Section):
    """How `series:FILE` (CSV, a column per series, a row per time) is cut into windows.

    The last `test` windows of `horizon` rows are forecast one after the other, the `validation` before them too; rows
    before those are trained on.
    """

    context: PositiveInt = Field(description="rows that a forecast sees")
    horizon: PositiveInt = Field(description="rows that it makes")
    rows: PositiveInt | None = Field(None, description="first rows of the file that are used; null: all")
    test: PositiveInt = Field(5, description="test windows, at the end of the series, one horizon apart")
    validation: NonNegativeInt = Field(2, description="validation windows before them")
    season: PositiveInt = Field(1, description="rows of a season: what the seasonal-naive forecast repeats")
    scaling: Literal["standard", "window"] = Field(
        "window", description="standard: by mean and deviation of the training rows; window: by those of each context"
    )
    target: Literal["level", "step"] = Field(
        "step", description="what is noised: a row itself, or its step from the row before"
    )
    paths: PositiveInt = Field(100, description="sample paths of a forecast")
    sampler: Literal["flow", "sde"] = Field(
        "flow",
        description="probability flow by dpmpp-2m, or the reverse SDE by sa-solver, tau 1, for 20 evaluations up",
    )
    nfe: PositiveInt = Field(20, description="network evaluations per row of a path")
    hidden: PositiveInt = Field(64, description="width of the recurrent state that a forecast is conditioned on")

    def features(self, d: int) -> int:
        """How many numbers a row of d series gives to the recurrent state (gentk/engine/forecasting.py)."""
        return 2 * d if self.season == 1 else 3 * d + 2

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        if self.season > self.context:
            raise ValueError(f"season: {self.season} rows do not fit into a context of {self.context}")
        return self
