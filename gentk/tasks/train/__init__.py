"""Train a diffusion model, a flow or a classifier on data, or a sampler for a density."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Generic, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from gentk.recipe.networks import Plain
from gentk.recipe.schema import Data, Ema, Fraction, Head, Measure, Net, Optimiser, Section, Train
from gentk.recipe.targets import Target

if TYPE_CHECKING:
    from gentk.engine.run import Job, Outcome

M = TypeVar("M", bound=Section)
SUBJECT = "data"


class DenoiserSettings(Section):
    """What every method that fits a denoiser sets alike: fields only, for the methods' `Config` to extend."""

    sigma_data: PositiveFloat = Field(0.5, description="standard deviation of the data")
    label_dropout: Fraction = Field(0.1, description="share of labels hidden, so that guidance works")


class SamplerSettings(Section):
    """What every method that fits a sampler to a density sets alike: fields only, for the methods' `Config` to extend.

    y are coordinates in which the target is roughly N(0, I).
    """

    whiten: Literal["auto", "laplace", "none"] = Field(
        "auto", description="coordinates y: laplace: mode and inverse Hessian; auto: that for posteriors"
    )
    scale: PositiveFloat = Field(
        1.0, description="y's unit where nothing is whitened: how far from its middle the sampler starts out"
    )
    anneal: Annotated[float, Field(ge=0, le=0.7)] = Field(
        0.6, description="part of the training in which the target is bridged from N(0, I) in y to itself; 0: none"
    )
    sigma: PositiveFloat = Field(0.2, description="noise of the score's denoising, in y's unit")
    sigma_end: PositiveFloat | None = Field(
        None, description="the noise at the end, reached geometrically after the annealing; null: as at the start"
    )
    score_steps: PositiveInt = Field(4, description="updates of the score per update of the sampler")
    clip: PositiveFloat | None = Field(20.0, description="largest force on a single draw; null: no limit")
    lead: bool = Field(
        False, description="the score network learns only what the target's own score, times a learned share, leaves"
    )
    lag: PositiveFloat | None = Field(
        0.1, description="largest violation of Stein's identity per dimension before the sampler waits; null: no check"
    )
    lag_draws: PositiveInt = Field(1024, description="fresh draws for that check")
    lag_rounds: PositiveInt = Field(3, description="rounds of score updates tried in a step before the sampler waits")


class SamplerOptim(Section):
    """An optimiser for each network."""

    sampler: Optimiser = Field(
        Optimiser(lr=1e-3, betas=(0.0, 0.99), decay="cosine", floor=0.05), description="of the sampler"
    )
    score: Optimiser = Field(Optimiser(lr=1e-3, betas=(0.9, 0.99)), description="of the score")


class SamplerMeasure(Section):
    """How the draws of a sampler are compared with the density."""

    n: Annotated[int, Field(ge=200)] = Field(2000, description="draws compared by distances, of each side")
    draws: Annotated[int, Field(ge=200)] = Field(10_000, description="draws for moments, masses and times")
    reference: Literal["auto", "hmc", "nuts", "none"] = Field(
        "auto", description="auto: exact draws where there are any, else HMC; nuts: by blackjax, of logistic:..."
    )
    chains: PositiveInt = Field(64, description="chains of the reference")
    rounds: PositiveInt = Field(
        3, description="times that the reference is doubled for R-hat < 1.01 and 400 effective draws"
    )
    length: Annotated[int, Field(ge=8)] = Field(250, description="draws of each chain at first")
    race: bool = Field(True, description="time HMC too, for the number of draws from which training pays")
    preview: NonNegativeInt = Field(1000, description="draws for the figures along the way (`eval/...`); 0: none")


class TargetRecipe(Head, Generic[M]):
    """A `train` recipe of a sampler for a density."""

    task: Literal["train"]
    target: Target = Field(description="the density, known up to a constant")
    net: Plain = Field(Plain(name="plain"), description="the sampler's network")
    score_net: Plain = Field(Plain(name="plain"), description="the network of its score")
    method: M = Field(description="the method and its settings")
    optim: SamplerOptim = Field(SamplerOptim(), description="optimisers of the two networks")
    ema: Ema = Field(Ema(half_life=50_000), description="averaging of the sampler; the average is measured and kept")
    train: Train = Field(description="the loop")
    measure: SamplerMeasure | None = Field(SamplerMeasure(), description="figures at the end; null: none")


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
