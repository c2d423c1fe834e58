"""UniPC predictor-corrector (arXiv:2302.04867)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gentk.recipe.schema import Section

KIND = "denoiser"


class Config(Section):
    """Settings of the solver."""

    name: Literal["unipc"]
    order: Annotated[int, Field(ge=1, le=3)] = Field(3, description="evaluations in the predictor")
    variant: Literal["bh1", "bh2"] = Field("bh1", description="B(h) = h, or 1 - e^-h")
    corrector: bool = Field(True, description="correct every step but the last with the new evaluation")
    lower_final: bool = Field(True, description="fall to lower order on the last steps")
