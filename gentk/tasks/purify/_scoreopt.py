"""What both forms of ScoreOpt set alike."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from gentk.recipe.schema import Section
from gentk.recipe.section import Beta


class ScoreOptSettings(Section):
    """Fields only, for the methods' `Config` to extend; levels and rates are of z = 2 x - 1 in [-1, 1]."""

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
