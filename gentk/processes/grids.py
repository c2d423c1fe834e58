"""Grids for solvers: where the denoiser is evaluated, from noise to data. `build` makes what a recipe describes.

`karras`, `uniform_lambda`, `uniform_t` and `given` make float64 noise-to-signal ratios, strictly decreasing, the last
one 0: n levels above 0 and so n steps. `to_times` turns any of them into process time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.processes.process import Process, ratio
from gentk.processes.schedules import Discrete, RectifiedFlow
from gentk.recipe import schema

CAPS = (0.002, 80.0)  # EDM's range, which a null sigma_min and sigma_max stay within
Unit = Literal["noise level", "time"]  # what a user gave the levels in, and so what an error speaks of

_ROUNDING = 1e-9  # by so much may a level lie beyond the process: ratios and times are made from each other


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


def given(sigmas: Sequence[float], *, to_zero: bool = True) -> Tensor:
    """The levels of a list, with the final 0 added if it is missing and `to_zero`.

    Raises RecipeError unless they are at least two, 0 or more, and decrease.
    """
    grid = torch.tensor(list(sigmas), dtype=torch.float64)
    if len(grid) and grid[-1] != 0 and to_zero:
        grid = _end(grid)
    if len(grid) < 2 or not bool((grid[1:] < grid[:-1]).all()) or grid[-1] < 0:
        raise RecipeError(
            f"grid: the noise levels {list(sigmas)} do not decrease", hint="list two or more, from noisy to clean"
        )
    return grid


def to_times(process: Process, sigmas: Tensor) -> Tensor:
    """Process times (n + 1,) of a grid of ratios; ratio 0 is t = 0.

    Raises RecipeError where the grid starts above the process's largest level: no network has learned what lies there.
    """
    times = process.t_of(sigmas)
    _not_above(process, times, "noise level")
    return times


def build(section: schema.Grid, steps: int, process: Process) -> Tensor:
    """The process times of a recipe's grid: (steps + 1,) float64 on the CPU, strictly decreasing.

    With `to_zero` they are `steps` levels and then 0; without, `steps` + 1 levels. A null end is the process's own, for
    sigmas within `CAPS`. RecipeError for fewer than one step, for levels other than 0 outside the process's t_min and
    t_max, for timesteps of a process that has none, and for a list that makes another number of steps.
    """
    if steps < 1:
        raise RecipeError(f"grid: {steps} steps", hint="a grid needs at least one step")
    levels = steps + (not section.to_zero)
    unit: Unit = "noise level"
    match section:
        case schema.KarrasGrid():
            times = process.t_of(karras(levels, *_range(section, process), section.rho)[: steps + 1])
        case schema.LambdaGrid() | schema.ExponentialGrid():
            times = process.t_of(uniform_lambda(levels, *_range(section, process))[: steps + 1])
        case schema.GivenGrid():
            times = process.t_of(given(section.sigmas, to_zero=section.to_zero))
        case schema.TimeGrid():
            unit, times = "time", _warped(section, steps, process)
        case _:
            unit, times = "time", _end(_timesteps(section, levels, process))[: steps + 1]
    if len(times) != steps + 1:
        raise RecipeError(f"grid: its list makes {len(times) - 1} steps, not {steps}", hint="make the two agree")
    if not bool((times[1:] < times[:-1]).all()):
        raise RecipeError(f"grid: two of {steps} steps coincide", hint="take fewer")
    _not_above(process, times, unit)
    _not_below(process, times, unit)
    return torch.where(times > 0, times.clamp(process.t_min, process.t_max), times)


def _range(
    section: schema.KarrasGrid | schema.LambdaGrid | schema.ExponentialGrid, process: Process
) -> tuple[float, float]:
    ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    low, high = ratio(process, ends).tolist()
    return (
        max(low, CAPS[0]) if section.sigma_min is None else section.sigma_min,
        min(high, CAPS[1]) if section.sigma_max is None else section.sigma_max,
    )


def _warped(section: schema.TimeGrid, steps: int, process: Process) -> Tensor:
    """Even in t^(1/power), then shifted. A t_min of 0 is the step to 0 itself, whatever `to_zero` says."""
    low = process.t_min if section.t_min is None else section.t_min
    high = process.t_max if section.t_max is None else section.t_max
    if low >= high:
        raise RecipeError(f"grid: times from {high:g} down to {low:g}", hint="t_min must be below t_max")
    n = steps + (low == 0 or not section.to_zero)
    root = 1 / section.power
    times = torch.linspace(high**root, low**root, n, dtype=torch.float64) ** section.power
    times[-1], times[0] = low, high  # exactly; with one level it is the noisy one
    if section.shift != 1:
        if not isinstance(process, RectifiedFlow):
            raise RecipeError(
                f"grid.shift: is a map of a flow's time, the process is `{process.name}`", hint="leave it out"
            )
        times = section.shift * times / (1 + (section.shift - 1) * times)
    return _end(times)[: steps + 1]


def _timesteps(
    section: schema.LeadingGrid | schema.TrailingGrid | schema.LinspaceGrid, n: int, process: Process
) -> Tensor:
    """The times of n integer timesteps (n,): timestep k is time k + 1.

    Rounded by numpy from floats as diffusers does, whose choices at .5 depend on the last digit; of its `trailing` only
    the first n are taken, to which rounding can add a timestep -1.
    """
    if not isinstance(process, Discrete):
        raise RecipeError(
            f"grid: `{section.name}` lists timesteps, which process `{process.name}` does not have",
            hint="use `time`, even in the process's own time",
        )
    if n == 1 and section.name != "trailing":
        raise RecipeError(f"grid: the only timestep of `{section.name}` is at the clean end", hint="use `trailing`")
    match section:
        case schema.LeadingGrid():
            k = np.arange(n, dtype=np.float64)[::-1] * (process.steps // n) + section.offset
        case schema.TrailingGrid():
            k = np.arange(process.steps, 0, -process.steps / n).round()[:n] - 1
        case schema.LinspaceGrid():
            k = np.linspace(0, process.steps - 1, n).round()[::-1]
    return torch.from_numpy(k + 1.0)


def _not_above(process: Process, times: Tensor, unit: Unit) -> None:
    if float(times[0]) > process.t_max * (1 + _ROUNDING):
        first, top = _shown(process, (float(times[0]), process.t_max), unit)
        raise RecipeError(
            f"grid: {unit} {first} is above {top}, the largest of process `{process.name}`",
            hint=f"start the grid at {top} or below",
        )


def _not_below(process: Process, times: Tensor, unit: Unit) -> None:
    last = float(times[times > 0][-1])
    if last < process.t_min * (1 - _ROUNDING):
        least, bottom = _shown(process, (last, process.t_min), unit)
        raise RecipeError(
            f"grid: {unit} {least} is below {bottom}, the smallest of process `{process.name}`",
            hint=f"end the grid at {bottom} or above; the step to 0 is `to_zero`",
        )


def _shown(process: Process, times: tuple[float, float], unit: Unit) -> list[str]:
    t = torch.tensor(times, dtype=torch.float64)
    return [f"{v:g}" for v in (t if unit == "time" else ratio(process, t)).tolist()]
