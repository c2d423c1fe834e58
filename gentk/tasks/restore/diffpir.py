"""Plug-and-play restoration (DiffPIR, arXiv:2305.08995): the model's answer, a proximal step to the data, new noise."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from gentk.recipe.schema import Fraction, Section


class Config(Section):
    """Settings of the restorer."""

    name: Literal["diffpir"]
    weight: PositiveFloat = Field(7.0, description="of the model against the data (the paper's lambda)")
    zeta: Fraction = Field(0.3, description="share of the variance of each level's noise that is fresh")
