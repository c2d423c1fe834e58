"""Grids of noise levels for solvers: float64 noise-to-signal ratios, strictly decreasing, the last one 0.

`n` levels where the denoiser is evaluated and then 0, so n steps; `to_times` turns any of them into process time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.processes.process import Process, ratio


def _check(n: int, sigma_min: float, sigma_max: float) -> None:
    if n < 1:
        raise RecipeError(f"grid: {n} steps", hint="a grid needs at least one step")
    if not 0 < sigma_min < sigma_max:
        raise RecipeError(
            f"grid: noise levels from {sigma_max:g} down to {sigma_min:g}",
            hint="they must satisfy 0 < sigma_min < sigma_max",
        )


def _end(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def karras(n: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """EDM's grid (n + 1,): uniform in sigma^(1/rho) from sigma_max to sigma_min (arXiv:2206.00364, eq. 5), then 0.

    Raises RecipeError for n < 1 or an empty range. With n = 1 the only level is sigma_max.
    """
    _check(n, sigma_min, sigma_max)
    sigmas = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), n, dtype=torch.float64) ** rho
    sigmas[0] = sigma_max  # exactly, which the power of its root is not
    return _end(sigmas)


def uniform_lambda(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Uniform in lambda = -ln sigma (n + 1,), the grid of DPM-Solver (arXiv:2206.00927), then 0. Raises as `karras`."""
    _check(n, sigma_min, sigma_max)
    sigmas = torch.linspace(math.log(sigma_max), math.log(sigma_min), n, dtype=torch.float64).exp()
    sigmas[0] = sigma_max
    return _end(sigmas)


def uniform_t(n: int, process: Process) -> Tensor:
    """Uniform in process time from t_max to 0 (n + 1,); the first ratio is inf where alpha(t_max) = 0."""
    if n < 1:
        raise RecipeError(f"grid: {n} steps", hint="a grid needs at least one step")
    return ratio(process, torch.linspace(process.t_max, 0.0, n + 1, dtype=torch.float64))


def given(sigmas: Sequence[float]) -> Tensor:
    """The levels of a list, with the final 0 added if it is missing. Raises RecipeError unless they decrease to 0."""
    grid = torch.tensor(list(sigmas), dtype=torch.float64)
    if len(grid) and grid[-1] != 0:
        grid = _end(grid)
    if len(grid) < 2 or not bool((grid[1:] < grid[:-1]).all()):
        raise RecipeError(
            f"grid: the noise levels {list(sigmas)} do not decrease to 0", hint="list them from noisy to clean"
        )
    return grid


def to_times(process: Process, sigmas: Tensor) -> Tensor:
    """Process times (n + 1,) of a grid of ratios; ratio 0 is t = 0.

    Raises RecipeError where the grid starts above the process's largest level: no network has learned what lies there.
    """
    times = process.t_of(sigmas)
    if float(times[0]) > process.t_max * (1 + 1e-9):  # room for rounding only
        top = float(ratio(process, torch.tensor(process.t_max, dtype=torch.float64)))
        raise RecipeError(
            f"grid: noise level {float(sigmas[0]):g} is above {top:g}, the largest of process `{process.name}`",
            hint=f"start the grid at {top:g} or below",
        )
    return times
