"""One call of a sampler of a density, and if asked for, Metropolis corrections of its draws."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from gentk.recipe.schema import Section

KIND = "sampler"


class Config(Section):
    """What is done to the draws: chains that start at them and leave the target as it is."""

    name: Literal["implicit"]
    correct: Literal["none", "mala", "hmc"] = Field("none", description="by which chains, one from each draw")
    transitions: PositiveInt = Field(5, description="of each chain; few correct shapes, none the masses of modes")
    steps: PositiveInt = Field(5, description="leapfrog steps of a transition (hmc)")
    step_size: PositiveFloat | None = Field(
        None, description="in the sampler's own coordinates; null: found on the draws, for the best acceptance"
    )
