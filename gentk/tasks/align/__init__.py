"""Tune a one-step generator to a reward, on the leash of the diffusion model that it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Generic, Literal, Self, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from gentk.errors import RecipeError
from gentk.recipe.lora import Lora
from gentk.recipe.prompts import Latent, PromptSource
from gentk.recipe.schema import Data, Ema, Fraction, Head, LogNormal, Measure, Optimiser, Section, Times, Train

if TYPE_CHECKING:
    from gentk.engine.run import Job, Outcome

M = TypeVar("M", bound=Section)
SUBJECT = "generator"


class _Scored(Section):
    name: str
    weight: float = Field(1.0, description="share of the sum that is the reward")
    mean: float = Field(0.0, description="taken from the value first")
    std: PositiveFloat = Field(1.0, description="then the value is divided by this")
    cap: float | None = Field(None, description="the normalised value stops to pull above this; null: no limit")


class ClassReward(_Scored):
    """ln p(class | image) of a classifier, for the class that the generator was asked for."""

    name: Literal["class"]
    classifier: str | None = Field(None, description="model name, run or file; null: classifier-DATA of the generator")
    target: NonNegativeInt | None = Field(None, description="this class instead of the one asked for")


class Brightness(_Scored):
    """Mean of the image's values on the scale from 0, black, to 1, white."""

    name: Literal["brightness"]


class Function(_Scored):
    """A function of the user's: f(samples, conditions) -> (B,), differentiable, from a module on Python's path."""

    name: Literal["function"]
    of: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] = Field(
        description="MODULE:FUNCTION; samples (B, ...) as the generator makes them, images in [-1, 1]"
    )


class Preference(_Scored):
    """What people prefer, by a published network on image and prompt (`gentk evaluate` measures the same)."""

    name: Literal["image-reward", "hps", "pick", "clip", "aesthetic"]
    weights: str | None = Field(None, description="file, folder or hub id of its network; null: as `gentk evaluate`")
    prompts: tuple[str, ...] = Field((), description="one for each class, where the generator has classes")


Reward = Annotated[ClassReward | Brightness | Function | Preference, Field(discriminator="name")]


class Watch(Section):
    """What is looked at along the way, on noise (and classes) that training never sees, and when it is an alarm."""

    samples: PositiveInt = Field(512, description="samples drawn for reward and spread, classes or prompts in turn")
    features: str = Field(
        "identity",
        description="space of the spread: as measure.features; identity: raw values, of large images the means over "
        "patches that leave 64 pixels a side",
    )
    spread: Fraction = Field(
        0.3,
        description="alarm where the spread over noises of one class falls below this share of the start's",
    )
    fd: PositiveFloat = Field(
        2.0, description="alarm where the reward is up and the Frechet distance above this many times the start's"
    )
    others: tuple[Reward, ...] = Field((), description="rewards that are only looked at")
    drop: PositiveFloat = Field(
        0.5, description="alarm where one of them falls by more than this many of its standard deviations at the start"
    )
    on_alarm: Literal["warn", "stop"] = Field("warn", description="go on with a warning, or end the training there")
    enough: float | None = Field(None, description="end the training where the reward on held-out noise reaches this")


class AlignSettings(Section):
    """What both methods set alike: fields only, for their `Config` to extend."""

    rewards: tuple[Reward, ...] = Field(min_length=1, description="their weighted sum is the reward")
    alpha_rew: NonNegativeFloat | Literal["auto"] = Field(
        "auto", description="the reward's factor beside a divergence of factor 1; auto: by `ratio`"
    )
    ratio: PositiveFloat = Field(
        0.5, description="auto: |alpha_rew dr/dx0| over |divergence's| where the generator begins to move"
    )
    leash: Literal[0, 1] = Field(1, description="0: the reward alone, which collapses: for comparison")
    alpha_cfg: Annotated[float, Field(ge=-1)] = Field(
        0.0, description="guidance of the reference, additive: diffusers' guidance_scale is 1 + alpha_cfg; 0: none"
    )
    cfg_placement: Literal["in", "out"] = Field(
        "in", description="guided score inside the divergence, or guidance as a reward beside it; dipp: the same"
    )
    weight: Literal["const", "sid-l1", "edm", "s2", "s4", "velocity"] = Field(
        "const",
        description="w(sigma) on the divergence in denoisers; s2 is w = 1 of the KL in scores, const its w = sigma^2",
    )
    fake_steps: PositiveInt = Field(1, description="K_TA: updates of the teaching assistant per generator update")
    fake_loss: Literal["edm", "flow"] = Field("edm", description="what it learns by, as in distill")
    warmup: NonNegativeInt = Field(
        200,
        description="first steps in which it learns alone: it starts as the reference, not as the generator",
    )
    sigma_init: PositiveFloat | None = Field(
        None,
        description="noise level of the generator's one call; null: what its file says; needed where a text-to-image "
        "model starts as its own teacher",
    )
    held_out: tuple[NonNegativeInt, ...] = Field((), description="classes that training never asks for")
    noise_generator: Times = Field(LogNormal(name="lognormal"), description="noise levels of the generator update")
    noise_fake: Times = Field(LogNormal(name="lognormal"), description="noise levels of the assistant's update")
    watch: Watch = Field(Watch(), description="what is looked at along the way")

    @model_validator(mode="after")
    def _moved(self) -> Self:
        if self.leash == 0 and self.alpha_rew in ("auto", 0):
            raise ValueError("leash 0 leaves the reward alone: set alpha_rew to a number above 0, `1` serves")
        return self


class Optim(Section):
    """One optimiser per network that learns."""

    generator: Optimiser = Field(description="the one-step generator's optimiser")
    fake: Optimiser = Field(description="the teaching assistant's optimiser")


class Recipe(Head, Generic[M]):
    """An `align` recipe."""

    task: Literal["align"]
    generator: str = Field(
        description="one-step generator: model name, run folder or safetensors file; or a text-to-image model, which "
        "then starts as its own teacher"
    )
    teacher: str | None = Field(None, description="the reference diffusion; null: what the generator was made from")
    method: M = Field(description="the method and its settings")
    prompts: PromptSource | None = Field(None, description="what a text-to-image model is asked for in training")
    held_out_prompts: PromptSource | None = Field(
        None, description="what it is only asked for when it is looked at; null: the last tenth of prompts, at most 16"
    )
    latent: Latent = Field(Latent(), description="how a text-to-image model is run")
    lora: Lora | None = Field(None, description="learn adapters on frozen weights; null: whole copies learn")
    optim: Optim = Field(description="optimisers of the two networks")
    ema: Ema = Field(Ema(), description="averaging of the generator; the average is measured and exported")
    train: Train = Field(description="the loop")
    measure: Measure | None = Field(None, description="figures before and after; null: none but the reward's")
    reference: Data | None = Field(None, description="real data to measure against; null: the reference's own")


def run(job: Job) -> Outcome:
    """Trains the method of the job's recipe in its run folder."""
    from gentk.engine.session import execute
    from gentk.recipe.registry import method_module

    config, steps = job.recipe.method, job.recipe.train.steps
    if config.leash and config.warmup >= steps:
        raise RecipeError(
            f"train.steps: {steps} are no more than method.warmup, {config.warmup}: the generator would never move",
            hint=f"--set method.warmup={steps // 3}, or more steps",
        )
    return execute(job, method_module("align", job.recipe.method.name).build)
