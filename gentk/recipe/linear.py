"""The sections of linear processes: `dx = -beta D x / 2 dt + sqrt(beta) dW` with a symmetric D = I - 2 A.

`process` and `drift` stand in the recipe of `train vsdm` and in the header of its models (gentk/processes/linear.py).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from gentk.recipe.section import Section

Form = Literal["diag", "low-rank", "full"]
Prior = Literal["exact", "kernel", "standard"]


class Betas(Section):
    """beta(t) = beta_min + (beta_max - beta_min) t^power on t in [0, 1]."""

    beta_min: PositiveFloat = Field(0.1, description="beta at t = 0")
    beta_max: PositiveFloat = Field(10.0, description="beta at t = 1")
    power: PositiveFloat = Field(1.7, description="how late beta rises; 1 is the usual linear schedule")
    t_min: Annotated[float, Field(gt=0, lt=1)] = Field(1e-3, description="smallest time used")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.beta_min > self.beta_max:
            raise ValueError(f"beta_min: {self.beta_min:g} is above beta_max: {self.beta_max:g}")
        return self


class Drift(Section):
    """The matrix A of the variational score A x, symmetric: its form and how it may change with time."""

    form: Form = Field("diag", description="diag: one number per coordinate; low-rank: plus a multiple of I; full")
    rank: PositiveInt = Field(8, description="directions of their own (low-rank): the leading ones of the data")
    cells: PositiveInt = Field(1, description="parts of [0, 1] in which A is constant; 1: the same A at all times")
