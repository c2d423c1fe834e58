"""Diff-Instruct: one step from a diffusion teacher by the integrated KL divergence (arXiv:2305.18455)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from gentk.recipe.schema import Fraction, LogNormal, Section, Times

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable


class Config(Section):
    """Settings of Diff-Instruct; symbols as in the paper."""

    name: Literal["diff-instruct"]
    weight: Literal["const", "sid-l1", "edm", "s2", "s4"] = Field(
        "const", description="w(sigma) on sg(D_psi - D_q) . x0: 1 as the authors' code, or as in `sim`; sid-l1 is DMD's"
    )
    sigma_init: PositiveFloat = Field(2.5, description="the fixed noise level at which the generator is called")
    fake_steps: PositiveInt = Field(1, description="updates of the fake score per generator update")
    noise_generator: Times = Field(LogNormal(name="lognormal"), description="noise levels of the generator update")
    noise_fake: Times = Field(LogNormal(name="lognormal"), description="noise levels of the fake-score update")
    dropout: Fraction = Field(
        0.0, description="dropout in generator and fake score while they learn; the teacher has none"
    )


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.losses.divergence import diff_instruct
    from gentk.tasks.distill._one_step import OneStep

    # the KL's gradient needs no graph through the two denoisers: only the generator's activations are kept
    return OneStep(recipe, where, diff_instruct, through_denoisers=False)
