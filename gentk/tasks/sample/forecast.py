"""Forecast a series with a model of `train vsdm`: sample paths of the rows after its last ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gentk.recipe.schema import Section

KIND = "forecaster"


class Config(Section):
    """Settings of the forecast."""

    name: Literal["forecast"]
    file: str | None = Field(None, description="CSV file with the context at its end; null: the model's own series")
    root: str | None = Field(None, description="folder that holds the model's own series; else GENTK_DATA")
