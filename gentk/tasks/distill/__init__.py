"""Make a one-step generator out of a diffusion or flow model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Generic, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from gentk.recipe.lora import Lora
from gentk.recipe.prompts import Latent, PromptSource
from gentk.recipe.schema import (
    Data,
    Ema,
    Fraction,
    Head,
    LogNormal,
    Measure,
    Optimiser,
    Section,
    Times,
    Train,
)

if TYPE_CHECKING:
    from gentk.engine.run import Job, Outcome

M = TypeVar("M", bound=Section)
SUBJECT = "teacher"


class Guidance(Section):
    """Classifier-free guidance inside the distillation (SiD-LSG, arXiv:2406.01561); scale 1 is none.

    For teachers with prompts, and with classes where they learned with label dropout. The generator itself is called
    once, with its label or prompt.
    """

    teacher: NonNegativeFloat = Field(1.0, description="scale of the teacher in the generator update")
    fake_train: NonNegativeFloat = Field(
        1.0, description="scale of the fake score while it learns: the guided fake score fits the generator's samples"
    )
    fake_eval: NonNegativeFloat = Field(1.0, description="scale of the fake score in the generator update")
    label_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of labels or prompts hidden from the fake score while it learns: what fake_eval needs by "
        "itself",
    )


class OneStepSettings(Section):
    """What every one-step method sets alike: fields only, for the methods' `Config` to extend."""

    weight: Literal["const", "sid-l1", "edm", "s2", "s4", "velocity"] = Field(
        "const",
        description="w(sigma) on the generator loss: 1, 1 / mean|x0 - D_q|, EDM's lambda, sigma^-2, sigma^-4, "
        "((1 + sigma) / sigma)^2",
    )
    fake_steps: PositiveInt = Field(1, description="updates of the fake score per generator update")
    reuse: bool = Field(
        False,
        description="the generator goes first in a step and its samples serve the fake score's updates too: one "
        "call of it per step, where every update of the fake score has samples of its own otherwise",
    )
    fake_loss: Literal["edm", "flow"] = Field(
        "edm", description="what the fake score learns by: EDM's weighted denoising error, or flow matching"
    )
    noise_fake: Times = Field(LogNormal(name="lognormal"), description="noise levels of the fake-score update")
    dropout: Fraction = Field(
        0.0, description="dropout in generator and fake score while they learn; the teacher has none"
    )
    guidance: Guidance = Field(Guidance(), description="guidance of teacher and fake score")


class FromLevel(Section):
    """Where the generator is called, for methods that say it as EDM does."""

    sigma_init: PositiveFloat = Field(2.5, description="the fixed noise level at which the generator is called")


class Optim(Section):
    """One optimiser per network that learns."""

    generator: Optimiser = Field(description="the one-step generator's optimiser")
    fake: Optimiser = Field(description="the fake score's optimiser")


class Recipe(Head, Generic[M]):
    """A `distill` recipe."""

    task: Literal["distill"]
    teacher: str = Field(
        description="the diffusion or flow model: name, run folder, safetensors file, or folder or hub id of a pipeline"
    )
    method: M = Field(description="the method and its settings")
    prompts: PromptSource | None = Field(None, description="what a text-to-image teacher is asked for")
    latent: Latent = Field(Latent(), description="how a text-to-image teacher is run")
    lora: Lora | None = Field(
        None, description="generator and fake score as adapters on the teacher's own weights; null: as full copies"
    )
    optim: Optim = Field(description="optimisers of the two networks")
    ema: Ema = Field(Ema(), description="averaging of the generator; the average is evaluated and exported")
    train: Train = Field(description="the loop")
    measure: Measure | None = Field(None, description="figures at the end of the run; null: none")
    reference: Data | None = Field(None, description="real data to measure against; null: the teacher's own")


def run(job: Job) -> Outcome:
    """Trains the method of the job's recipe in its run folder."""
    from gentk.engine.session import execute
    from gentk.recipe.registry import method_module

    return execute(job, method_module("distill", job.recipe.method.name).build)
