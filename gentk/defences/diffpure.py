"""DiffPure: the variance-preserving diffusion up to t*, then its reverse SDE by Euler and Maruyama (arXiv:2205.07460).

    up     y = alpha(t*) z + sigma(t*) xi
    down   y <- y + h beta(t) (y / 2 + s(y, t)) + sqrt(h beta(t)) xi,   t from t* to t_end in `steps` steps of h

beta linear from beta_min to beta_max on [0, 1], s = (alpha D - y) / sigma^2. The published code takes h = 1e-3 and
stops at t_end = 1e-5, where sigma is 1e-3; what noise is left then is left in. Its gradients are an adjoint's, which
is an approximation; here they are exact. t* is a time: level() says which noise level it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from gentk.attacks.victim import Grad
from gentk.defences.noise import Noise
from gentk.defences.prior import Prior
from gentk.defences.walk import State, walk
from gentk.errors import RecipeError
from gentk.processes.schedules import VP


@dataclass(frozen=True, eq=False)
class DiffPure:
    """The purifier. Raises RecipeError for a t_end that is not below t_star."""

    denoise: Prior
    t_star: float = 0.1
    steps: int = 100
    t_end: float = 1e-5
    beta_min: float = 0.1
    beta_max: float = 20.0
    surrogate_steps: int = 20

    modes: ClassVar[tuple[Grad, ...]] = ("full", "bpda", "surrogate", "blind")
    random = True

    def __post_init__(self) -> None:
        if not 0 < self.t_end < self.t_star <= 1:
            raise RecipeError(f"method.t_end: {self.t_end:g} is not between 0 and t_star, {self.t_star:g}")

    @property
    def nfe(self) -> int:
        """One call of D a step."""
        return self.steps

    def level(self, t: float) -> float:
        """The noise level sigma / alpha of time t."""
        alpha, sigma, _ = self._at(t)
        return sigma / alpha

    @cached_property
    def _grid(self) -> list[tuple[float, float, float]]:
        h = (self.t_star - self.t_end) / self.steps
        return [self._at(self.t_star - i * h) for i in range(self.steps)]

    def _at(self, t: float) -> tuple[float, float, float]:
        """alpha, sigma, beta at time t."""
        process, time = VP(self.beta_min, self.beta_max), torch.tensor(t, dtype=torch.float64)
        beta = self.beta_min + (self.beta_max - self.beta_min) * t
        return float(process.alpha(time)), float(process.sigma(time)), beta

    def __call__(self, z: Tensor, noise: Noise) -> Tensor:
        """z (B, ...) -> the purified z, exactly differentiable."""
        h, grid = (self.t_star - self.t_end) / self.steps, self._grid

        def step(i: int, state: State) -> State:
            (y,) = state
            alpha, sigma, beta = grid[i]
            if i == 0:
                y = alpha * y + sigma * noise.normal("0.start", y)
            score = (alpha * self.denoise(y / alpha, sigma / alpha) - y) / sigma**2
            return (y + h * beta * (0.5 * y + score) + math.sqrt(h * beta) * noise.normal(f"0.{i}", y),)

        (out,) = walk(step, self.steps, (z,))
        return out

    def surrogate(self, z: Tensor, noise: Noise) -> Tensor:
        """The same in `surrogate_steps` steps, as Lee and Kim attack it (arXiv:2303.09051)."""
        return replace(self, steps=self.surrogate_steps)(z, noise)
