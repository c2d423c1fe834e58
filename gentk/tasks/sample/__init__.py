"""Draw samples from a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from gentk.recipe.schema import Head, Section

if TYPE_CHECKING:
    from gentk.engine.run import Job, Outcome

M = TypeVar("M", bound=Section)
SUBJECT = "model"


class Recipe(Head, Generic[M]):
    """A `sample` recipe."""

    task: Literal["sample"]
    model: str = Field(description="model name, run folder or safetensors file")
    method: M = Field(description="the solver and its settings")
    n: PositiveInt = Field(64, description="how many samples")
    first: NonNegativeInt = Field(0, description="index of the first sample; sample k is the same in every command")
    batch: PositiveInt = Field(500, description="samples per network call; does not change the samples")
    labels: tuple[NonNegativeInt, ...] | None = Field(
        None, min_length=1, description="classes to cycle through; null: all of them"
    )
    guidance: NonNegativeFloat = Field(1.0, description="classifier-free guidance scale; 1 is none")
    save: tuple[Literal["npz", "png", "grid"], ...] = Field(("npz", "grid"), description="what to write")


def run(job: Job) -> Outcome:
    """Draws the samples of the job's recipe into its run folder."""
    from gentk.tasks.sample._drawing import execute

    return execute(job)
