"""What every section of a recipe is, and the numbers that several of them hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Warp = Annotated[float, Field(ge=1)]  # below 1, rho would crowd the grid at the noisy end


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values never change and are never coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())
