"""Variational Schroedinger diffusion: a learned linear forward drift, and the score of its process (arXiv:2405.04795).

    dx = -beta D x / 2 dt + sqrt(beta) dW,     D = I - 2 A,     A symmetric

Steps come in stages. A stage begins with the step in A: backward trajectories from the standard prior by the score as
it is, then the closed form (gentk/losses/bridge.py), damped by stage^-damping as in stochastic approximation. The rest
of the stage fits the score to the new process, without simulation. Before the first of them A = 0, the ordinary
variance-preserving diffusion; with `stages: 0` it stays so and this is denoising score matching. Coordinates of a large
variance need a hundred steps in A and more; `start: gaussian` begins where these would end by the variance alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from gentk.recipe.linear import Betas, Drift, Prior
from gentk.recipe.schema import Fraction, Section, Times, UniformTime
from gentk.recipe.series import Series

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable


class Config(Section):
    """Settings of the bridge."""

    name: Literal["vsdm"]
    betas: Betas = Field(Betas(), description="how fast the noise comes")
    drift: Drift = Field(Drift(), description="the form of A")
    start: Literal["zero", "gaussian"] = Field(
        "zero", description="A before the first step: 0, or where the steps would end if the data were Gaussian"
    )
    stages: NonNegativeInt = Field(20, description="steps in A; 0: none, denoising score matching")
    stage: PositiveInt = Field(
        500, description="updates of the score per stage, the first of them with the A of `start`"
    )
    zeta: PositiveFloat = Field(
        1.0, description="weight of the divergence: 1 is the bridge, the paper's few-step runs have 0.75"
    )
    update: Literal["closed", "gradient"] = Field(
        "closed", description="the least A for the trajectories, or ten gradient steps towards it"
    )
    damping: Fraction = Field(0.5, description="the k-th step in A goes k^-damping of the way; 0: all the way")
    paths: PositiveInt = Field(2000, description="backward trajectories of a step in A")
    path_steps: PositiveInt = Field(50, description="steps of each")
    prior: Prior = Field(
        "exact",
        description="what is drawn from: the Gaussian law of x at t = 1, the kernel's noise alone, or N(0, I)",
    )
    spread: Literal["coordinate", "common"] = Field(
        "coordinate", description="the data's scale in the preconditioning: of each coordinate, or one for all"
    )
    noise: Times = Field(UniformTime(name="uniform"), description="law of the time in training")
    label_dropout: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="share of labels hidden, so that guidance works"
    )
    series: Series | None = Field(None, description="windows of a time series (data: series:FILE); null: no series")


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    if recipe.data.name.startswith("series:"):
        from gentk.tasks.train._forecasting import Forecasting

        return Forecasting(recipe, where)
    from gentk.tasks.train._bridging import Bridging

    return Bridging(recipe, where)
