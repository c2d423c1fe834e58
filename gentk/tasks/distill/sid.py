"""Score identity distillation: one step from a diffusion teacher by the Fisher divergence (arXiv:2404.04057)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat

from gentk.recipe.schema import KarrasUniform, Times
from gentk.tasks.distill import FromLevel, OneStepSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch
    from torch import Tensor

    from gentk.engine.method import Trainable


class Config(FromLevel, OneStepSettings):
    """Settings of SiD; symbols as in the paper."""

    name: Literal["sid"]
    alpha: NonNegativeFloat = Field(
        1.0,
        description="1: Fisher divergence with the sampling law frozen (SIM's l2); 0.5: its full gradient; 1.2: the "
        "paper's best, an extrapolation with no divergence behind it",
    )
    weight: Literal["const", "sid-l1", "edm", "s2", "s4", "velocity"] = Field(
        "sid-l1", description="w(sigma) on the generator loss; sid-l1, 1 / mean|x0 - D_q|, is the paper's"
    )
    noise_generator: Times = Field(KarrasUniform(name="karras"), description="noise levels of the generator update")


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.losses.divergence import sid
    from gentk.tasks.distill._one_step import OneStep

    config: Config = recipe.method

    def objective(x0: Tensor, d_teacher: Tensor, d_fake: Tensor) -> Tensor:
        return sid(x0, d_teacher, d_fake, alpha=config.alpha)

    return OneStep(recipe, where, objective)
