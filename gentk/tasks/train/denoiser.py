"""Denoiser of a diffusion or flow model, by EDM's preconditioning and loss (arXiv:2206.00364)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gentk.recipe.schema import VE, LogNormal, Predicts, Process, Times
from gentk.tasks.train import DenoiserSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable


class Config(DenoiserSettings):
    """Settings of the denoiser."""

    name: Literal["denoiser"]
    process: Process = Field(VE(name="ve"), description="the forward process")
    predicts: Predicts = Field("edm", description="what the network's output means")
    noise: Times = Field(LogNormal(name="lognormal"), description="law of the noise level in training")


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.losses.matching import edm
    from gentk.tasks.train._denoising import Denoising

    return Denoising(recipe, where, edm)
