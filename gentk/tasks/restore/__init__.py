"""Restore images from what was measured of them, by a diffusion or flow model as prior, or learn to from such data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Annotated, Generic, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveInt

from gentk.recipe.operators import Operator
from gentk.recipe.restoring import Flow, Glow, Held
from gentk.recipe.schema import Data, Ema, Grid, Head, KarrasGrid, Measure, Net, Optimiser, Section, Train

if TYPE_CHECKING:
    from gentk.engine.run import Job, Outcome

M = TypeVar("M", bound=Section)
SUBJECT = "data"

SIGMA = "deviation of the noise in what is measured, in units of images in [-1, 1] (bytes: times 127.5)"


class Recipe(Head, Generic[M]):
    """A `restore` recipe for a model that is there."""

    task: Literal["restore"]
    data: Data = Field(description="clean images that are measured here and restored, so that the result can be judged")
    split: Literal["test", "train"] = Field("test", description="their split")
    input: str | None = Field(
        None, description="folder of pictures that were measured already, in place of `data`; restored by their names"
    )
    model: str = Field(description="the prior: a denoiser or flow model's name, run folder or safetensors file")
    operator: Operator = Field(description="what was done to the images, but for the noise")
    sigma: NonNegativeFloat = Field(description=SIGMA)
    method: M = Field(description="the restorer and its settings")
    steps: Annotated[int, Field(ge=2)] = Field(100, description="noise levels above 0: evaluations of the model")
    grid: Grid = Field(KarrasGrid(name="karras"), description="the noise levels")
    n: PositiveInt | None = Field(
        None, description="images of `data`, the first ones; null: all. A folder is restored whole"
    )
    draws: PositiveInt = Field(1, description="results per image; several give their mean, deviation and coverage")
    batch: PositiveInt = Field(100, description="images times draws per network call; does not change the results")


class LearningOptim(Section):
    """An optimiser for each network."""

    flow: Optimiser = Field(Optimiser(lr=5e-4, clip=5.0), description="of the flow")
    denoiser: Optimiser = Field(Optimiser(lr=1e-3, clip=5.0), description="of the denoiser")


class Learning(Head, Generic[M]):
    """A `restore` recipe of a method that learns from measurements alone."""

    task: Literal["restore"]
    data: Data = Field(description="clean images: measured here, and then seen by no learner; figures are made of them")
    operator: Operator = Field(description="what is done to the images, but for the noise")
    sigma: NonNegativeFloat = Field(description=SIGMA)
    net: Net = Field(description="the denoiser's network")
    flow: Flow = Field(Glow(name="glow"), description="the flow's network")
    method: M = Field(description="the method and its settings")
    optim: LearningOptim = Field(LearningOptim(), description="optimisers of the networks")
    ema: Ema = Field(
        Ema(half_life=50_000), description="averaging: of the denoiser, which is the flow's prior, and the flow"
    )
    train: Train = Field(description="the loop")
    measure: Measure | None = Field(None, description="figures of samples of the learned prior; null: none")
    held: Held = Field(Held(), description="how restoring held-out measurements is judged")


def run(job: Job) -> Outcome:
    """Restores, or learns to, as the job's recipe says."""
    from gentk.recipe.registry import method_module

    by = getattr(method_module("restore", job.recipe.method.name), "DONE_BY", "_restoring")
    outcome: Outcome = importlib.import_module(f"gentk.tasks.restore.{by}").execute(job)
    return outcome
