"""Measure samples, runs and models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt

from gentk.recipe.schema import Data, Head, Section

if TYPE_CHECKING:
    from gentk.engine.run import Job, Outcome

M = TypeVar("M", bound=Section)
SUBJECT = "samples"

Measure = Literal["fd", "kid", "prdc", "infinity"]


class ImageSettings(Section):
    """What every metric in the features of an image network sets alike: fields only, for the methods to extend."""

    also: tuple[Measure, ...] = Field((), description="further measures in the same features, from the same pass")
    weights: str | None = Field(None, description="file of the network's weights; null: where the metric looks for it")
    n: PositiveInt | None = Field(
        None, description="samples measured; null: all of a file or folder, 10,000 of a model"
    )
    reference_n: PositiveInt | None = Field(None, description="reference images used, the first ones; null: all")
    steps: PositiveInt = Field(18, description="Heun steps for a many-step model: NFE = 2 steps - 1")
    batch: PositiveInt = Field(500, description="images read or drawn at a time")
    blocks: NonNegativeInt = Field(
        10, description="disjoint blocks behind the interval of the distance; 0: no interval"
    )
    subsets: PositiveInt = Field(100, description="subsets that KID averages over")
    subset: PositiveInt = Field(1000, description="images in each of them")
    k: PositiveInt = Field(5, description="neighbours behind precision, recall, density and coverage")


class Recipe(Head, Generic[M]):
    """An `evaluate` recipe."""

    task: Literal["evaluate"]
    samples: str = Field(description="a sample run, a folder of pictures, an .npz file, data:NAME:SPLIT, or a model")
    reference: Data = Field(description="the data compared with; stats:FILE.npz for saved statistics")
    split: Literal["train", "test"] = Field("train", description="the split of the reference")
    method: M = Field(description="the metric and its settings")


def run(job: Job) -> Outcome:
    """Measures the samples of the job's recipe."""
    from gentk.recipe.registry import method_module

    by = method_module("evaluate", job.recipe.method.name).DONE_BY
    outcome: Outcome = importlib.import_module(f"gentk.tasks.evaluate.{by}").execute(job)
    return outcome
