"""Contrastive divergence: data against short Langevin chains that start from them (Hinton 2002), a baseline.

The usual gradient, without the term that runs through the chain: it does not vanish at the truth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gentk.tasks.train_ebm import LangevinSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable


class Config(LangevinSettings):
    """Settings of the chains."""

    name: Literal["cd"]


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.tasks.train_ebm._chaining import chaining

    return chaining(recipe, where)
