"""Purify++: noise up to t*, then EDM's diffusion back, with a choice of solver and of randomness (arXiv:2310.18762).

The paper's own parametrisation, settings and tables are not public; it names three axes, the model, the simulation and
the control of randomness. The last two as we make them, with the denoiser D frozen over a step from t to u, r = u / t:

    euler        z + (u - t) (z - D) / t = D + r (z - D)                           the ODE, order 1
    heun         the mean of the slopes at both ends of Euler's step               the ODE, order 2
    exponential  D + r^(1 + lambda) (z - D) + u sqrt(1 - r^(2 lambda)) xi          exact for frozen D

The last is a step of dz = (1 + lambda) t s dtau + sqrt(2 lambda t) dw backwards in t, s the score: the probability-flow
ODE and lambda times a Langevin part that leaves every p_t as it is. lambda = 0 is Euler's step (DDIM's), lambda = 1
DDPM's posterior. Its corrector asks D again at the step's end and takes the mean of the two, of order 2 for lambda = 0.
Churn is EDM's other way: up to t (1 + gamma) by fresh noise, then a step of the ODE (arXiv:2206.00364, algorithm 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

from torch import Tensor

from gentk.attacks.victim import Grad
from gentk.defences.noise import Noise
from gentk.defences.prior import Prior
from gentk.defences.walk import State, walk
from gentk.errors import RecipeError
from gentk.processes.grids import karras

Solver = Literal["euler", "heun", "exponential"]
_Draw = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Churn:
    """EDM's churn: `amount` over the steps' number raises a level within [low, high]; `noise` scales what is put in."""

    amount: float
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    def raised(self, t: float, steps: int) -> float:
        """The level that t is raised to."""
        gamma = min(self.amount / steps, math.sqrt(2) - 1)
        return t * (1 + gamma) if self.low <= t <= self.high else t


@dataclass(frozen=True, eq=False)
class PurifyPP:
    """The purifier. Raises RecipeError for settings that do not go together.

    `steps` levels from t_star to t_min, even in t^(1/rho), then 0; with one step it is a single call of D at t_star.
    `langevin` is lambda, where it acts: at levels within `langevin_range`, 0 outside. `surrogate_steps` are those of
    the surrogate, else as this one.
    """

    denoise: Prior
    t_star: float
    steps: int
    t_min: float = 0.002
    rho: float = 7.0
    solver: Solver = "euler"
    langevin: float = 0.0
    langevin_range: tuple[float, float] = (0.0, math.inf)
    corrector: bool = False
    churn: Churn | None = None
    rounds: int = 1
    surrogate_steps: int = 1

    modes: ClassVar[tuple[Grad, ...]] = ("full", "bpda", "surrogate", "blind")
    random = True

    def __post_init__(self) -> None:
        if not 0 < self.t_min < self.t_star:
            raise RecipeError(f"method.t_min: {self.t_min:g} is not between 0 and t_star, {self.t_star:g}")
        if self.solver != "exponential" and (self.langevin or self.corrector):
            raise RecipeError(
                f"method.solver: `{self.solver}` is a step of the ODE, langevin and corrector need `exponential`"
            )
        if self.churn and self.langevin:
            raise RecipeError("method: langevin and churn are two ways to the same end: set one of them to 0")

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """t_star = t_0 > ... > t_(steps - 1) = t_min, then 0."""
        return tuple(karras(self.steps, self.t_min, self.t_star, self.rho).tolist())

    @property
    def nfe(self) -> int:
        """`steps` calls a round, twice as many but for the last step where each is corrected."""
        twice = self.solver == "heun" or self.corrector
        each: int = 2 * self.steps - 1 if twice else self.steps
        return self.rounds * each

    def __call__(self, z: Tensor, noise: Noise) -> Tensor:
        """z (B, ...) -> the purified z, exactly differentiable."""
        levels = self.levels
        step = self._exponential if self.solver == "exponential" else self._ode

        def one(k: int, state: State) -> State:
            turn, i = divmod(k, self.steps)
            (z,), t = state, levels[i]
            if i == 0:
                z = z + t * noise.normal(f"{turn}.start", z)
            if self.churn and (up := self.churn.raised(t, self.steps)) > t:
                fresh = noise.normal(f"{turn}.{i}.churn", z)
                z, t = z + self.churn.noise * math.sqrt(up**2 - t**2) * fresh, up
            return (step(z, t, levels[i + 1], lambda like: noise.normal(f"{turn}.{i}", like)),)

        (out,) = walk(one, self.rounds * self.steps, (z,))
        return out

    def surrogate(self, z: Tensor, noise: Noise) -> Tensor:
        """One round of `surrogate_steps` steps, without churn."""
        return replace(self, steps=self.surrogate_steps, rounds=1, churn=None)(z, noise)

    def _ode(self, z: Tensor, t: float, u: float, _: _Draw) -> Tensor:
        d = self.denoise(z, t)
        if u == 0:  # there is no slope at 0 to correct with
            return d
        ahead = d + (u / t) * (z - d)
        if self.solver == "euler":
            return ahead
        slope = (z - d) / t + (ahead - self.denoise(ahead, u)) / u
        return z + 0.5 * (u - t) * slope

    def _exponential(self, z: Tensor, t: float, u: float, xi: _Draw) -> Tensor:
        d = self.denoise(z, t)
        if u == 0:
            return d
        low, high = self.langevin_range
        lam = self.langevin if low <= t <= high else 0.0
        kept: float = (u / t) ** (1 + lam)
        fresh = u * math.sqrt(-math.expm1(2 * lam * math.log(u / t))) * xi(z) if lam else 0.0
        out = d + kept * (z - d) + fresh
        if self.corrector:
            d = 0.5 * (d + self.denoise(out, u))
            out = d + kept * (z - d) + fresh
        return out
