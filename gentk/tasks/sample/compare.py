"""Several solvers at several budgets: error, Frechet distance and time in one table and one figure."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt

from gentk.recipe.schema import Section

KIND = "comparison"


class Config(Section):
    """What is compared and how it is judged."""

    name: Literal["compare"]
    solvers: tuple[str | dict[str, Any], ...] = Field(
        min_length=1, description="methods by name, or sections with their settings, as `method` holds them"
    )
    nfe: tuple[PositiveInt, ...] = Field((5, 10, 20, 50), min_length=1, description="budgets, in denoiser evaluations")
    exact_n: PositiveInt = Field(256, description="samples whose error against a fine solution is measured")
    exact_nfe: PositiveInt = Field(399, description="evaluations of that solution, by Heun's method")
    features: str | None = Field(
        None, description="feature network for the Frechet distance of n samples to the model's data; null: none"
    )
