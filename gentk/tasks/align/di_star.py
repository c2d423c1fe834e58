"""Diff-Instruct*: reward and score-based divergence (arXiv:2410.20898).

DI++ with SIM's divergence in place of the KL: d(s_psi - s_ref), d the pseudo-Huber distance. The guided reference
stands inside the distance (`cfg_placement: in`, as released), or guidance is the DI++ term of its implicit reward
beside a divergence from the plain reference (`out`; the row is the paper's, this reading of it ours).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from gentk.recipe.score_distance import ScoreDistance
from gentk.tasks.align import AlignSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable


class Config(ScoreDistance, AlignSettings):
    """Settings of Diff-Instruct*; symbols as in the paper."""

    name: Literal["di-star"]


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.losses.divergence import sim
    from gentk.tasks.align._aligning import Aligning

    config: Config = recipe.method
    objective = partial(sim, distance=config.distance, c=config.c, path=config.path)
    return Aligning(recipe, where, objective, through=True)
