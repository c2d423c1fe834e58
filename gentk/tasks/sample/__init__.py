"""Draw samples from a model or a density."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from gentk.errors import RecipeError
from gentk.recipe.prompts import Latent, PromptSource
from gentk.recipe.schema import Grid, Head, KarrasGrid, Section, Threshold

if TYPE_CHECKING:
    from gentk.engine.run import Job, Outcome

M = TypeVar("M", bound=Section)
SUBJECT = "model"

_DONE_BY = {
    "denoiser": "_drawing",
    "generator": "_drawing",
    "sampler": "_samplers",
    "target": "_chains",
    "energy": "_energies",
    "comparison": "_comparing",
    "forecaster": "_forecasting",
}


class Recipe(Head, Generic[M]):
    """A `sample` recipe."""

    task: Literal["sample"]
    model: str = Field(
        description="model name, run folder, safetensors file, targets:NAME, or a folder or hub id of diffusers"
    )
    method: M = Field(description="the solver and its settings")
    nfe: PositiveInt | None = Field(
        None, description="denoiser evaluations per sample, at most; null: 35, or as many as a given grid needs"
    )
    grid: Grid = Field(KarrasGrid(name="karras"), description="noise levels that a solver steps through")
    n: PositiveInt = Field(64, description="how many samples")
    first: NonNegativeInt = Field(0, description="index of the first sample; sample k is the same in every command")
    batch: PositiveInt = Field(500, description="samples per network call; does not change the samples")
    labels: tuple[NonNegativeInt, ...] | None = Field(
        None, min_length=1, description="classes to cycle through; null: all of them"
    )
    guidance: NonNegativeFloat = Field(
        1.0, description="classifier-free guidance scale, diffusers' guidance_scale: 1 is none; 1 + omega"
    )
    guidance_interval: tuple[NonNegativeFloat, NonNegativeFloat] | None = Field(
        None, description="smallest and largest noise level that guidance acts at; null: all"
    )
    prompts: PromptSource | None = Field(None, description="what a text-to-image model is asked for")
    latent: Latent = Field(Latent(), description="how a text-to-image model is run")
    threshold: Threshold | None = Field(None, description="clip the denoiser's output; breaks the order of solvers")
    save: tuple[Literal["npz", "safetensors", "png", "grid"], ...] = Field(("npz", "grid"), description="what to write")


def run(job: Job) -> Outcome:
    """Draws the samples of the job's recipe into its run folder."""
    from gentk.recipe import pipelines
    from gentk.recipe.registry import method_module
    from gentk.recipe.stamp import read_header
    from gentk.recipe.store import model_path

    kind = method_module("sample", job.recipe.method.name).KIND
    if kind in ("denoiser", "generator") and pipelines.is_text(job.recipe.model):
        painted: Outcome = importlib.import_module("gentk.tasks.sample._painting").execute(job)
        return painted
    if kind == "comparison" and pipelines.is_text(job.recipe.model):
        raise RecipeError(
            f"`{job.recipe.model}`: text-to-image models are sampled one method at a time",
            hint=f"gentk sample euler --model {job.recipe.model} --prompt TEXT",
        )
    if job.recipe.prompts is not None:
        raise RecipeError(
            f"prompts: `{job.recipe.model}` is no text-to-image model", hint=f"one of {', '.join(pipelines.BY_NAME)}"
        )
    if kind == "generator" and not job.recipe.model.startswith("targets:"):
        kind = read_header(model_path(job.recipe.model))["kind"]  # one-step draws from samplers of densities too
        kind = kind if kind == "sampler" else "generator"
    outcome: Outcome = importlib.import_module(f"gentk.tasks.sample.{_DONE_BY[kind]}").execute(job)
    return outcome
