"""Persistent contrastive divergence: Langevin chains that go on from step to step (Tieleman 2008), a baseline.

With a replay buffer of chains, some of which start anew from noise at every step (Du and Mordatch 2019, JEM).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from gentk.recipe.section import Fraction
from gentk.tasks.train_ebm import LangevinSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable


class Config(LangevinSettings):
    """Settings of the chains."""

    name: Literal["pcd"]
    buffer: PositiveInt = Field(10_000, description="chains kept")
    renew: Fraction = Field(0.05, description="share of a step's chains that start anew from noise")
    start: PositiveFloat = Field(1.5, description="standard deviation of that noise, in units of the data's")


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.tasks.train_ebm._chaining import persistent

    return persistent(recipe, where)
