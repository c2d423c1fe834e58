"""Diffuse by the variance-preserving SDE and come back by its reverse (DiffPure, arXiv:2205.07460)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from gentk.recipe.schema import Section

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    from gentk.defences import Purifier
    from gentk.defences.prior import Prior


class Config(Section):
    """Settings of the defence."""

    name: Literal["diffpure"]
    t_star: PositiveFloat = Field(
        0.1, description="time of the SDE that the image is brought to, at most 1 (a level: see the result)"
    )
    steps: PositiveInt = Field(100, description="Euler-Maruyama steps back")
    t_end: PositiveFloat = Field(1e-5, description="time at which it stops")
    beta_min: PositiveFloat = Field(0.1, description="beta at time 0")
    beta_max: PositiveFloat = Field(20.0, description="beta at time 1")
    surrogate_steps: PositiveInt = Field(20, description="steps of the cheaper purifier that `surrogate` attacks")


def levels(config: Config) -> dict[str, float]:
    """The ends of the noise levels that the model is asked at, by key."""
    from gentk.defences.diffpure import DiffPure

    own = {k: getattr(config, k) for k in type(config).model_fields if k != "name"}
    sde = DiffPure(lambda z, t: z, **own)
    h = (config.t_star - config.t_end) / config.steps
    return {"method.t_star": sde.level(config.t_star), "method.steps": sde.level(config.t_end + h)}


def build(config: Any, prior: Prior) -> Purifier:
    """The purifier."""
    from gentk.defences.diffpure import DiffPure

    return DiffPure(prior, **{k: getattr(config, k) for k in type(config).model_fields if k != "name"})
