"""Measure samples, runs and models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveInt

from gentk.errors import RecipeError
from gentk.recipe.schema import Data, Head, Section

if TYPE_CHECKING:
    from gentk.engine.run import Job, Outcome

M = TypeVar("M", bound=Section)
SUBJECT = "samples"

Measure = Literal["fd", "kid", "is", "prdc", "infinity"]


class ImageSettings(Section):
    """What every metric in the features of an image network sets alike: fields only, for the methods to extend."""

    also: tuple[Measure, ...] = Field((), description="further measures in the same features, from the same pass")
    weights: str | None = Field(None, description="file of the network's weights; null: where the metric looks for it")
    n: PositiveInt | None = Field(
        None, description="samples measured; null: all of a file or folder, 10,000 of a model"
    )
    draws: PositiveInt = Field(
        1, description="how many times n samples are measured, none of them twice: mean and spread of the figures"
    )
    reference_n: PositiveInt | None = Field(None, description="reference images used, the first ones; null: all")
    steps: PositiveInt = Field(18, description="Heun steps for a many-step model: NFE = 2 steps - 1")
    batch: PositiveInt = Field(500, description="images read or drawn at a time")
    blocks: NonNegativeInt = Field(
        10, description="disjoint blocks behind the interval of the distance; 0: no interval"
    )
    subsets: PositiveInt = Field(100, description="subsets that KID averages over")
    subset: PositiveInt = Field(1000, description="images in each of them")
    splits: PositiveInt = Field(10, description="parts whose Inception scores are averaged")
    k: PositiveInt = Field(5, description="neighbours behind precision, recall, density and coverage")


class ScoreSettings(Section):
    """What every score of single images sets alike: fields only, for the methods to extend."""

    weights: str | None = Field(None, description="the network's weights; null: where the score looks for them")
    n: PositiveInt | None = Field(
        None, description="samples measured; null: all of a file or folder, 10,000 of a model"
    )
    steps: PositiveInt = Field(18, description="Heun steps for a many-step model: NFE = 2 steps - 1")
    batch: PositiveInt = Field(100, description="images scored at a time")
    resamples: PositiveInt = Field(2000, description="bootstrap resamples behind the interval")


class PromptSettings(ScoreSettings):
    """The same for scores of images with their prompts."""

    prompts: str | None = Field(
        None, description="prompts: .txt (one a line), .json, .jsonl, .csv or .parquet (key `prompt`)"
    )
    per_prompt: PositiveInt = Field(1, description="images per prompt, one after the other")


class Recipe(Head, Generic[M]):
    """An `evaluate` recipe."""

    task: Literal["evaluate"]
    samples: str = Field(description="a sample run, a folder of pictures, an .npz file, data:NAME:SPLIT, or a model")
    reference: Data | None = Field(
        None, description="the data compared with, where the metric compares; stats:FILE.npz for saved statistics"
    )
    split: Literal["train", "test"] = Field("train", description="the split of the reference")
    method: M = Field(description="the metric and its settings")


def run(job: Job) -> Outcome:
    """Measures the samples of the job's recipe."""
    from gentk.recipe.registry import method_module

    module, recipe = method_module("evaluate", job.recipe.method.name), job.recipe
    alone = getattr(module, "NEEDS", "pairs") != "pairs" or getattr(module, "MEASURE", "") == "is"
    if recipe.reference is None and not alone:
        raise RecipeError(f"`{recipe.method.name}` needs a reference", hint="--reference NAME, FOLDER or FILE.npz")
    by = module.DONE_BY
    outcome: Outcome = importlib.import_module(f"gentk.tasks.evaluate.{by}").execute(job)
    return outcome
