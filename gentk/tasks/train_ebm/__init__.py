"""Fit an energy to data: an unnormalised density."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Generic, Literal, Self, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from gentk.recipe.networks import EnergyNet
from gentk.recipe.schema import Data, Ema, Head, Optimiser, Section, Train

if TYPE_CHECKING:
    from gentk.engine.run import Job, Outcome

M = TypeVar("M", bound=Section)
SUBJECT = "data"


class Levels(Section):
    """Noise levels of a time-dependent energy, each the same multiple of the next."""

    low: PositiveFloat = Field(0.05, description="smallest noise level")
    high: PositiveFloat = Field(3.0, description="largest noise level")
    count: Annotated[int, Field(ge=2)] = Field(10, description="how many")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low: {self.low:g} is not below high: {self.high:g}")
        return self


class EnergySettings(Section):
    """What every method that fits an energy sets alike: fields only, for the methods' `Config` to extend."""

    levels: Levels | None = Field(None, description="of a time-dependent energy E(x, t); null: a static one, E(x)")
    dequantise: NonNegativeFloat = Field(
        0.0, description="width of uniform noise added to data, against infinite densities on a grid of grey values"
    )
    penalty: NonNegativeFloat = Field(
        0.0, description="times E(data)^2 + E(negatives)^2, which keeps energies near 0; changes the fitted density"
    )
    limit: PositiveFloat = Field(
        1e5, description="stop when energies of data and negatives differ by more: the run has diverged"
    )


class LangevinSettings(EnergySettings):
    """What CD and PCD set alike about their chains."""

    steps: PositiveInt = Field(20, description="Langevin steps for the negatives")
    step_size: PositiveFloat = Field(
        0.01, description="variance of a step's noise at temperature 1; with levels, times t^2"
    )
    temperature: PositiveFloat = Field(
        1.0, description="of the chains: below 1 they sample exp(-E / T), sharper than the model"
    )
    clip: PositiveFloat | None = Field(None, description="largest move of one value by the gradient in a step")


class Measure(Section):
    """How a fitted energy is drawn from and measured."""

    n: PositiveInt = Field(5000, description="samples drawn")
    features: str = Field(description="feature network (model name, run or file), or `identity` for the raw values")
    k: PositiveInt = Field(3, description="neighbours that define the manifolds of precision and recall")
    preview: NonNegativeInt = Field(0, description="samples for the figures along the way (`eval/...`); 0: none")
    batch: PositiveInt = Field(500, description="chains side by side")
    steps: PositiveInt = Field(200, description="steps of a chain from noise; with levels, at each of them")
    step_size: PositiveFloat = Field(0.15, description="variance of a step's noise; with levels, times t^2")
    levels: PositiveInt = Field(10, description="noise levels that chains go down (time-dependent energies)")
    start: PositiveFloat = Field(
        1.5, description="standard deviation of a static energy's first states, in that of data"
    )
    longer: NonNegativeInt = Field(10, description="measured again after so many more times the chain's length; 0: not")
    denoise: tuple[PositiveFloat, ...] = Field((), description="noise levels to denoise test images at (PSNR)")


class Recipe(Head, Generic[M]):
    """A `train-ebm` recipe."""

    task: Literal["train-ebm"]
    data: Data = Field(description="what to learn from")
    net: EnergyNet = Field(description="the energy's network")
    method: M = Field(description="the method and its settings")
    optim: Optimiser = Field(description="the network's optimiser")
    ema: Ema = Field(Ema(), description="averaging of the weights that are evaluated and exported")
    train: Train = Field(description="the loop")
    measure: Measure | None = Field(None, description="figures at the end of the run; null: none")


def run(job: Job) -> Outcome:
    """Trains the method of the job's recipe in its run folder."""
    from gentk.engine.session import execute
    from gentk.recipe.registry import method_module

    return execute(job, method_module("train-ebm", job.recipe.method.name).build)
