"""One-call sampler of a density, by KL training (arXiv:2306.04952)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gentk.tasks.train import SamplerSettings
from gentk.tasks.train import TargetRecipe as Recipe

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch
    from torch import Tensor

    from gentk.engine.method import Trainable
    from gentk.tasks.train._implicit import Push

SUBJECT = "target"
__all__ = ["SUBJECT", "Config", "Recipe", "build"]


class Config(SamplerSettings):
    """Settings of KL training."""

    name: Literal["implicit-kl"]
    smooth: bool = Field(
        False,
        description="noised draws against the energy of as much noise (ebm of several levels): no bias from sigma, "
        "which falls from `sigma` to `sigma_end`",
    )


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.losses import implicit
    from gentk.tasks.train._implicit import Implicit

    def force(push: Push, gen: torch.Generator) -> Tensor:
        return implicit.kl(push.score, push.target, push.y)

    return Implicit(recipe, where, force)
