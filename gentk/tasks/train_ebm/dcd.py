"""Diffusion contrastive divergence (arXiv:2307.01668): data against the model, both noised; no chain in the loop.

The paper's formula is KL(p_0 | q_0) - KL(p_T | q_T); the estimators are ours (gentk/losses/energy.py derives them):

    ranking    E1, which of the datum and M candidates from N(y, sigma^2) is the datum; right at the truth for any M
    posterior  E2, negatives by Langevin steps on E(x) + |x - y|^2 / 2 sigma^2, as in recovery likelihood
    one-step   E3, first order in sigma^2, near score matching; for sigma below the data's finest scale

A kernel much narrower than the distance between modes does not see their weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from gentk.tasks.train_ebm import EnergySettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable


class Config(EnergySettings):
    """Settings of the divergence and its estimator."""

    name: Literal["dcd"]
    estimator: Literal["ranking", "posterior", "one-step"] = Field("ranking", description="which estimator")
    sigma: tuple[PositiveFloat, PositiveFloat] | PositiveFloat | None = Field(
        None,
        description="standard deviation of the kernel, or the ends of a log-uniform law of it; with levels, times t; "
        "null: what leads from one level to the next above it, or half the data's",
    )
    candidates: PositiveInt = Field(8, description="M of `ranking`")
    w: NonNegativeFloat = Field(1.0, description="weight of the datum in `ranking`: 1, or 0 for importance sampling")
    steps: PositiveInt = Field(10, description="Langevin steps of `posterior`")
    step_size: PositiveFloat = Field(
        0.5, description="variance of such a step's noise, in units of the posterior's variance"
    )
    detail: PositiveFloat | None = Field(
        None, description="finest scale of the data, which bounds that variance; null: t, or the data's deviation"
    )
    antithetic: bool = Field(True, description="`one-step`: average over xi and -xi")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if isinstance(self.sigma, tuple) and self.sigma[0] >= self.sigma[1]:
            raise ValueError(f"sigma: {self.sigma[0]:g} is not below {self.sigma[1]:g}")
        return self


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.tasks.train_ebm._diffusing import diffusing

    return diffusing(recipe, where)
