"""Optimise the noised image until the diffusion model explains it by its noise (ScoreOpt-N, arXiv:2307.04333)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gentk.tasks.purify._scoreopt import ScoreOptSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    from gentk.defences import Purifier
    from gentk.defences.prior import Prior

MASKED = True  # its exact gradient says little: the surrogate is the attack to look at


class Config(ScoreOptSettings):
    """Settings of the defence; levels and rates are of z = 2 x - 1 in [-1, 1]."""

    name: Literal["scoreopt-n"]


def levels(config: Config) -> dict[str, float]:
    """The ends of the noise levels that the model is asked at, by key."""
    return {"method.t0": config.t0}


def build(config: Any, prior: Prior) -> Purifier:
    """The purifier."""
    from gentk.defences.scoreopt import ScoreOpt

    own = {k: getattr(config, k) for k in type(config).model_fields if k != "name"}
    return ScoreOpt(prior, **own, resample_t=False, resample_noise=False, over_t2=True, final=True)
