"""How well an energy tells data from what it has not seen: AUROC of the energy as a score, with its interval."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from gentk.recipe.schema import Section

DONE_BY = "_outliers"


class Config(Section):
    """What is held against the data, and how."""

    name: Literal["ood"]
    against: tuple[str, ...] = Field(
        ("upside-down", "noisy", "uniform"),
        min_length=1,
        description="upside-down | mirrored | noisy (the data, changed), uniform, constant, or data:NAME:SPLIT",
    )
    n: PositiveInt = Field(1000, description="samples of each, the first ones")
    noise: NonNegativeFloat = Field(0.6, description="deviation of the noise of `noisy`, clipped to [-1, 1] for images")
    level: NonNegativeFloat | None = Field(
        None, description="noise level that a time-dependent energy is read at; null: its smallest"
    )
    added: bool = Field(False, description="add noise of that level to all samples first, as the energy knows them")
    batch: PositiveInt = Field(250, description="samples at a time")
