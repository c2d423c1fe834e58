"""Learn a clean prior and a one-pass restorer together, from measurements alone (FlowDiff, arXiv:2407.11162)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from gentk.recipe.schema import Ema, LogNormal, Section, Times
from gentk.tasks.restore import Learning as Recipe

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable

__all__ = ["Config", "Recipe", "build"]

DONE_BY = "_learning"


class Config(Section):
    """Settings of the method. The paper's own could not be had: the weights are those of the likelihood."""

    name: Literal["flowdiff"]
    sigma_data: PositiveFloat = Field(0.5, description="deviation of the clean data, for the denoiser's scaling")
    noise: Times = Field(LogNormal(name="lognormal"), description="law of the noise level that the denoiser learns at")
    lambda_data: NonNegativeFloat = Field(1.0, description="weight of |y - H x|^2 / (2 sigma^2)")
    lambda_prior: NonNegativeFloat = Field(1.0, description="weight of the denoiser's bound of -log p(x)")
    lambda_entropy: NonNegativeFloat = Field(1.0, description="weight of the flow's log-determinant; 0: it collapses")
    warmup: NonNegativeInt = Field(200, description="first steps: the flow alone, with a Gaussian prior")
    correlated: bool = Field(
        True, description="that prior has the covariance of the measurements, where masks or noise let it be seen"
    )
    prior_steps: NonNegativeInt = Field(200, description="next steps: the denoiser alone, on the flow's draws")
    finetune: NonNegativeInt = Field(0, description="last steps: the denoiser alone again")
    follow: Ema = Field(
        Ema(half_life=2000),
        description="average of the denoiser that is the flow's prior: its speed is that of EM",
    )
    sigma_min: PositiveFloat = Field(
        0.02, description="smallest noise level of the bound, -log p is taken at it: too large leaves the prior noisy"
    )
    sigma_max: PositiveFloat = Field(10.0, description="its largest")
    repeats: PositiveInt = Field(2, description="calls per draw in the bound; even: pairs of opposite noise, calmer")
    measured: bool = Field(
        True,
        description="where only noise was added, levels above it are learned from the measurements and not from draws",
    )
    through: bool = Field(True, description="gradient through the denoiser; false: score distillation, biased here")

    @model_validator(mode="after")
    def _ordered(self) -> Config:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min: {self.sigma_min:g} is not below sigma_max: {self.sigma_max:g}")
        return self


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.tasks.restore._variational import FlowDiff

    return FlowDiff(recipe, where)
