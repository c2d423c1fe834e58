"""Optimise the noised image until the diffusion model explains it by its noise (ScoreOpt-N, arXiv:2307.04333)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from gentk.recipe.schema import Section
from gentk.recipe.section import Beta

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    from gentk.defences import Purifier
    from gentk.defences.prior import Prior

MASKED = True  # its exact gradient says little: the surrogate is the attack to look at


class Config(Section):
    """Settings of the defence; levels and rates are of z = 2 x - 1 in [-1, 1]."""

    name: Literal["scoreopt-n"]
    t0: PositiveFloat = Field(0.5, description="noise level that the image is judged at")
    iters: NonNegativeInt = Field(5, description="steps of Adam")
    lr: NonNegativeFloat = Field(0.1, description="its learning rate: by about so much a step every pixel moves")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="decay of its moments")
    eps: PositiveFloat = Field(1e-8, description="added to the root of the second")
    loss: Literal["diff", "mse", "sr"] = Field(
        "diff", description="|D - z|^2; plus the distance to the image that came in (mse) or between both D (sr)"
    )
    weight: NonNegativeFloat = Field(1.0, description="of that second term")
    loss_grad: Literal["full", "stopgrad"] = Field(
        "full", description="through the network, or as if its answer did not depend on z"
    )
    surrogate_by: Literal["one-shot", "sgd"] = Field(
        "one-shot", description="what `surrogate` attacks: one call of the model, or plain gradient descent unrolled"
    )
    surrogate_lr: NonNegativeFloat = Field(0.1, description="learning rate of the latter")


def levels(config: Config) -> dict[str, float]:
    """The ends of the noise levels that the model is asked at, by key."""
    return {"method.t0": config.t0}


def build(config: Any, prior: Prior) -> Purifier:
    """The purifier."""
    from gentk.defences.scoreopt import ScoreOpt

    own = {k: getattr(config, k) for k in type(config).model_fields if k != "name"}
    return ScoreOpt(prior, **own, resample_t=False, resample_noise=False, over_t2=True, final=True)
