"""Noise and denoise with a diffusion model, by a choice of solver and randomness (Purify++, arXiv:2310.18762).

Purify++-style: the paper's own parametrisation is not public.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from gentk.recipe.schema import Section

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    from gentk.defences import Purifier
    from gentk.defences.prior import Prior


class Churn(Section):
    """EDM's churn: the level is raised by fresh noise before each step."""

    amount: NonNegativeFloat = Field(description="S_churn: over the number of steps, by what part a level is raised")
    low: NonNegativeFloat = Field(0.0, description="smallest level that is raised")
    high: PositiveFloat = Field(1e9, description="largest level that is raised")
    noise: PositiveFloat = Field(1.0, description="S_noise: scales what is put in")


class Config(Section):
    """Settings of the defence; levels are of z = 2 x - 1 in [-1, 1], EDM's sigma."""

    name: Literal["purify-pp"]
    t_star: PositiveFloat = Field(0.5, description="noise level that the image is brought to")
    steps: PositiveInt = Field(8, description="levels from t_star to t_min, then 0; 1: a single call of the model")
    t_min: PositiveFloat = Field(0.02, description="smallest level above 0")
    rho: PositiveFloat = Field(7.0, description="warp of the grid between them; 1: even")
    solver: Literal["euler", "heun", "exponential"] = Field(
        "heun", description="steps of the ODE (euler, heun) or of the family with lambda (exponential)"
    )
    langevin: NonNegativeFloat = Field(
        0.0, description="lambda, the Langevin part's strength: 0 the ODE, 1 the reverse SDE, above it more noise"
    )
    langevin_range: tuple[NonNegativeFloat, PositiveFloat] = Field(
        (0.0, 1e9), description="levels at which it acts; outside it is 0"
    )
    corrector: bool = Field(False, description="ask the model again at each step's end (exponential)")
    churn: Churn | None = Field(None, description="EDM's way of being random, instead of langevin; null: none")
    rounds: PositiveInt = Field(1, description="how often all of it is done")
    surrogate_steps: PositiveInt = Field(1, description="steps of the cheaper purifier that `surrogate` attacks")

    @model_validator(mode="after")
    def _ordered(self) -> Config:
        if self.t_min >= self.t_star:
            raise ValueError(f"t_min: {self.t_min:g} is not below t_star: {self.t_star:g}")
        return self


def levels(config: Config) -> dict[str, float]:
    """The ends of the noise levels that the model is asked at, by key."""
    return {"method.t_star": config.t_star} | ({"method.t_min": config.t_min} if config.steps > 1 else {})


def build(config: Any, prior: Prior) -> Purifier:
    """The purifier."""
    from gentk.defences.purify_pp import Churn as Raise
    from gentk.defences.purify_pp import PurifyPP

    own = {k: getattr(config, k) for k in type(config).model_fields if k not in ("name", "churn")}
    churn = config.churn
    return PurifyPP(prior, **own, churn=churn and Raise(churn.amount, churn.low, churn.high, churn.noise))
