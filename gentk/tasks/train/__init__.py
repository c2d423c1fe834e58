"""Train a diffusion model, a flow or a classifier on data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pydantic import Field, PositiveFloat

from gentk.recipe.schema import Data, Ema, Fraction, Head, Measure, Net, Optimiser, Section, Train

if TYPE_CHECKING:
    from gentk.engine.run import Job, Outcome

M = TypeVar("M", bound=Section)
SUBJECT = "data"


class DenoiserSettings(Section):
    """What every method that fits a denoiser sets alike: fields only, for the methods' `Config` to extend."""

    sigma_data: PositiveFloat = Field(0.5, description="standard deviation of the data")
    label_dropout: Fraction = Field(0.1, description="share of labels hidden, so that guidance works")


class Recipe(Head, Generic[M]):
    """A `train` recipe."""

    task: Literal["train"]
    data: Data = Field(description="what to learn from")
    net: Net = Field(description="the network")
    method: M = Field(description="the method and its settings")
    optim: Optimiser = Field(description="the network's optimiser")
    ema: Ema = Field(Ema(), description="averaging of the weights that are evaluated and exported")
    train: Train = Field(description="the loop")
    measure: Measure | None = Field(None, description="figures at the end of the run; null: none")


def run(job: Job) -> Outcome:
    """Trains the method of the job's recipe in its run folder."""
    from gentk.engine.session import execute
    from gentk.recipe.registry import method_module

    return execute(job, method_module("train", job.recipe.method.name).build)
