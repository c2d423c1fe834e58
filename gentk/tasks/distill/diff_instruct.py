"""Diff-Instruct: one step from a diffusion teacher by the integrated KL divergence (arXiv:2305.18455)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gentk.recipe.schema import LogNormal, Times
from gentk.tasks.distill import FromLevel, OneStepSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable


class Config(FromLevel, OneStepSettings):
    """Settings of Diff-Instruct; symbols as in the paper. Weight `const` is the authors' code, `sid-l1` is DMD's."""

    name: Literal["diff-instruct"]
    noise_generator: Times = Field(LogNormal(name="lognormal"), description="noise levels of the generator update")


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.losses.divergence import diff_instruct
    from gentk.tasks.distill._one_step import OneStep

    # the KL's gradient needs no graph through the two denoisers: only the generator's activations are kept
    return OneStep(recipe, where, diff_instruct, through_denoisers=False)
