"""One-call sampler of a density, by KL and then Fisher training (arXiv:2306.04952)

The Fisher divergence pulls harder near the target, KL from farther away: KL goes first. Neither sees the weights of
modes that lie far apart, and Fisher loses what KL has found, so it is for polishing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gentk.recipe.schema import Fraction
from gentk.tasks.train import SamplerSettings
from gentk.tasks.train import TargetRecipe as Recipe

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable

SUBJECT = "target"
__all__ = ["SUBJECT", "Config", "Recipe", "build"]


class Config(SamplerSettings):
    """Settings of Fisher training."""

    name: Literal["implicit-fisher"]
    form: Literal["denoising", "divergence"] = Field(
        "denoising", description="of the smoothed sampler, without divergences; or of the sampler itself"
    )
    divergence: Literal["exact", "hutchinson"] = Field(
        "exact", description="by a backward pass per dimension, or estimated by one (form: divergence)"
    )
    kl_first: Fraction = Field(0.7, description="part of the training that is KL alone")
    blend: Fraction = Field(0.0, description="share of the KL force after that")


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.tasks.train._implicit import Implicit, fisher_force

    return Implicit(recipe, where, fisher_force(recipe.method))
