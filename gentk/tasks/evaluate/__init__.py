"""Measure samples, runs and models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pydantic import Field

from gentk.recipe.schema import Data, Head, Section

if TYPE_CHECKING:
    from gentk.engine.run import Job, Outcome

M = TypeVar("M", bound=Section)
SUBJECT = "samples"


class Recipe(Head, Generic[M]):
    """An `evaluate` recipe."""

    task: Literal["evaluate"]
    samples: str = Field(description="a sample run, a PNG folder, an .npz file, or a model to draw from")
    reference: Data = Field(description="the data compared with: its training split")
    method: M = Field(description="the metric and its settings")


def run(job: Job) -> Outcome:
    """Measures the samples of the job's recipe."""
    from gentk.tasks.evaluate._measuring import execute

    return execute(job)
