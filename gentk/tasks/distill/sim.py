"""Score implicit matching: one step from a diffusion teacher by score-based divergences (arXiv:2410.16794)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gentk.recipe.schema import KarrasUniform, Times
from gentk.recipe.score_distance import ScoreDistance
from gentk.tasks.distill import FromLevel, OneStepSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable


class Config(ScoreDistance, FromLevel, OneStepSettings):
    """Settings of SIM; symbols as in the paper."""

    name: Literal["sim"]
    noise_generator: Times = Field(KarrasUniform(name="karras"), description="noise levels of the generator update")


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.losses.divergence import sim
    from gentk.tasks.distill._one_step import OneStep

    config: Config = recipe.method
    objective = partial(sim, distance=config.distance, c=config.c, path=config.path)
    return OneStep(recipe, where, objective)
