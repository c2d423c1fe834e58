"""Baseline: rounds of posterior draws by the denoiser, and of learning from them: EM (arXiv:2405.13712, 2407.01014)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from gentk.recipe.schema import LogNormal, Section, Times
from gentk.tasks.restore import Learning as Recipe

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable

__all__ = ["Config", "Recipe", "build"]

DONE_BY = "_learning"


class Config(Section):
    """Settings of the baseline; `flow`, `optim.flow` and `held` of the recipe do not matter to it."""

    name: Literal["em"]
    sigma_data: PositiveFloat = Field(0.5, description="deviation of the clean data, for the denoiser's scaling")
    noise: Times = Field(LogNormal(name="lognormal"), description="law of the noise level that the denoiser learns at")
    every: PositiveInt = Field(250, description="steps of a round; at its start the draws are made anew")
    pool: PositiveInt = Field(512, description="measurements that a round draws of, one draw each; at most all")
    levels: PositiveInt = Field(16, description="noise levels of a draw")
    solves: NonNegativeInt = Field(3, description="conjugate gradients of PiGDM's covariance; noise alone needs none")
    sigma_min: PositiveFloat = Field(0.02, description="the draws' smallest level above 0")
    sigma_max: PositiveFloat = Field(10.0, description="their largest, where more than noise is to be undone")
    batch: PositiveInt = Field(128, description="draws per network call")

    @model_validator(mode="after")
    def _ordered(self) -> Config:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min: {self.sigma_min:g} is not below sigma_max: {self.sigma_max:g}")
        return self


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.tasks.restore._rounds import Em

    return Em(recipe, where)
