"""Optimise the image itself until the diffusion model finds it likely (ScoreOpt-O, arXiv:2307.04333)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from gentk.recipe.schema import Section
from gentk.recipe.section import Beta

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    from gentk.defences import Purifier
    from gentk.defences.prior import Prior

MASKED = True  # its exact gradient says little: the surrogate is the attack to look at


class Config(Section):
    """Settings of the defence; levels and rates are of z = 2 x - 1 in [-1, 1]."""

    name: Literal["scoreopt-o"]
    t0: PositiveFloat = Field(0.5, description="noise level that the image is judged at")
    band: NonNegativeFloat = Field(0.1, description="levels are drawn from t0 - band to t0 + band, anew each step")
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
