"""The `target:` section of recipes: the density that a sampler is trained for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from gentk.recipe.section import Section

Support = Literal["real", "positive", "unit"]


class Target(Section):
    """A density known up to a constant."""

    name: str = Field(
        description="NAME (in the plane) | logistic:synthetic, breast-cancer, german, ... or a .csv file | ebm:MODEL | "
        "MODULE:FUNCTION"
    )
    root: str | None = Field(None, description="folder that holds the tables; else $GENTK_DATA/tabular (logistic)")
    label: int = Field(-1, description="column of the label, from 0, or from the end below 0 (logistic)")
    header: bool = Field(False, description="whether the file's first line names the columns (logistic)")
    drop: tuple[int, ...] = Field((), description="columns to leave out (logistic)")
    rows: PositiveInt | None = Field(None, description="use only so many rows, the first ones; null: all (logistic)")
    minibatch: PositiveInt | None = Field(
        None, description="rows that each score is estimated from, scaled to all of them; null: all (logistic)"
    )
    prior: PositiveFloat = Field(1.0, description="standard deviation of the normal prior of each weight (logistic)")
    intercept: bool = Field(True, description="a weight of a column of ones, under the same prior (logistic)")
    level: PositiveFloat | None = Field(
        None, description="noise level of a time-dependent energy; null: its smallest (ebm)"
    )
    dim: PositiveInt | None = Field(None, description="number of parameters (MODULE:FUNCTION)")
    map: tuple[Support, ...] | None = Field(
        None, description="support of each parameter; the sampler works on the whole line (MODULE:FUNCTION)"
    )
    tail: Annotated[float, Field(gt=0)] | None = Field(
        None, description="adds -|x|^2 / (2 tail^2): makes a proper density of an improper one, and another one"
    )
