"""Frechet distance, precision, recall and nearest neighbours in the features of a classifier of the same data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from gentk.recipe.schema import Measure, Section

DONE_BY = "_measuring"


class Config(Section):
    """Settings of the measurement."""

    name: Literal["fd"]
    features: str = Field(description="feature network (model name, run or file), or `identity` for the raw values")
    n: PositiveInt = Field(10_000, description="samples to draw when a model is measured; files are used whole")
    k: PositiveInt = Field(3, description="neighbours that define the manifolds of precision and recall")
    steps: PositiveInt = Field(18, description="Heun steps for a many-step model: NFE = 2 steps - 1")
    batch: PositiveInt = Field(500, description="samples per network call")

    @property
    def measure(self) -> Measure:
        """The same settings as the section that training recipes use."""
        return Measure(features=self.features, n=self.n, k=self.k, steps=self.steps, batch=self.batch)
