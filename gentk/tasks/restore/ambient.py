"""Baseline: a denoiser of measurements that are corrupted further (Ambient Diffusion, arXiv:2305.19256, 2404.10177)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat

from gentk.recipe.schema import Fraction, LogNormal, Section, Times
from gentk.tasks.restore import Learning as Recipe

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable

__all__ = ["Config", "Recipe", "build"]

DONE_BY = "_learning"


class Config(Section):
    """Settings of the baseline, for masks and for noise; `flow` and `optim.flow` of the recipe do not matter to it."""

    name: Literal["ambient"]
    sigma_data: PositiveFloat = Field(0.5, description="deviation of the clean data, for the denoiser's scaling")
    noise: Times = Field(LogNormal(name="lognormal"), description="law of the noise that is added to the measurements'")
    hide: Fraction = Field(0.1, description="share of the seen pixels that the network is not shown; no masks: none")


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.tasks.restore._further import Ambient

    return Ambient(recipe, where)
