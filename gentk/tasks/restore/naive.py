"""Baseline: a denoiser of measurements, taken for clean images; what every method that knows the operator must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat

from gentk.recipe.schema import LogNormal, Section, Times
from gentk.tasks.restore import Learning as Recipe

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable

__all__ = ["Config", "Recipe", "build"]

DONE_BY = "_learning"


class Config(Section):
    """Settings of the baseline; `flow`, `optim.flow` and `held` of the recipe do not matter to it."""

    name: Literal["naive"]
    sigma_data: PositiveFloat = Field(0.5, description="deviation of the data, for the denoiser's scaling")
    noise: Times = Field(LogNormal(name="lognormal"), description="law of the noise level in training")
    see: Literal["measured", "clean"] = Field(
        "measured", description="what it learns from; clean: the bound that no learner from measurements can pass"
    )


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.tasks.restore._uncorrected import Naive

    return Naive(recipe, where)
