"""Optimise the image itself until the diffusion model finds it likely (ScoreOpt-O, arXiv:2307.04333)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, model_validator

from gentk.tasks.purify._scoreopt import ScoreOptSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    from gentk.defences import Purifier
    from gentk.defences.prior import Prior

MASKED = True  # its exact gradient says little: the surrogate is the attack to look at


class Config(ScoreOptSettings):
    """Settings of the defence; levels and rates are of z = 2 x - 1 in [-1, 1]."""

    name: Literal["scoreopt-o"]
    band: NonNegativeFloat = Field(0.1, description="levels are drawn from t0 - band to t0 + band, anew each step")

    @model_validator(mode="after")
    def _above_zero(self) -> Config:
        if self.t0 <= self.band:
            raise ValueError(f"t0: levels from {self.t0 - self.band:g} on, they must be above 0: lower band")
        return self


def levels(config: Config) -> dict[str, float]:
    """The ends of the noise levels that the model is asked at, by key."""
    return {"method.t0 - band": config.t0 - config.band, "method.t0 + band": config.t0 + config.band}


def build(config: Any, prior: Prior) -> Purifier:
    """The purifier."""
    from gentk.defences.scoreopt import ScoreOpt

    own = {k: getattr(config, k) for k in type(config).model_fields if k != "name"}
    return ScoreOpt(prior, **own)
