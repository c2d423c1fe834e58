"""Classifier-free guidance as a denoiser made of a denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process, expand, ratio

Interval = tuple[float, float]
"""The smallest and the largest noise-to-signal ratio that guidance acts at, both included."""


def guided(
    denoiser: Denoise, scale: float, interval: Interval | None = None, process: Process | None = None
) -> Denoise:
    """D_u + scale (D_c - D_u) with D_u the call without a label (Ho & Salimans 2022, arXiv:2207.12598).

    In their notation scale = 1 + w. Scale 1 is the conditional and 0 the unconditional denoiser, at one network call
    instead of two; so is a call with `cond=None`, where the two coincide.

    Outside `interval` the denoiser is the conditional one, at one call (Kynkaanniemi et al. 2024, arXiv:2404.07724:
    at high noise guidance takes variety away, at low noise it does nothing); `process`, needed with it, says which
    ratio a time is. Raises RecipeError for an empty interval.
    """
    _check(interval)
    if scale == 1:
        return denoiser

    def within(x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        plain = denoiser(x, t, None)
        if cond is None or scale == 0:
            return plain
        return plain + scale * (denoiser(x, t, cond) - plain)

    def denoise(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if interval is None or cond is None:
            return within(x, t, cond)
        acts = _acts(interval, process, t)
        if bool(acts.all()):
            return within(x, t, cond)
        outside = denoiser(x, t, cond)
        return torch.where(expand(acts, x) != 0, within(x, t, cond), outside) if bool(acts.any()) else outside

    return denoise


def scale_of(omega: float) -> float:
    """The scale of D_c + omega (D_c - D_u), where 0 is none: DI++'s and DI*'s alpha_cfg, the paper's w."""
    return 1 + omega


def omega_of(scale: float) -> float:
    """The omega of a scale, diffusers' `guidance_scale`, where 1 is none."""
    return scale - 1


def calls(scale: float) -> int:
    """Network evaluations per call of `guided(denoiser, scale)` with a label, at ratios that it acts at."""
    return 1 if scale in (0, 1) else 2


def cost(scale: float, interval: Interval | None, process: Process, times: Tensor) -> int:
    """Network evaluations of one call of `guided` at each of `times` (n,), with a label.

    For a solver that calls the denoiser once at every point of its grid but the 0 at the end, `times` is `grid[:-1]`;
    for others, the times that it calls at, as often as it does. Raises RecipeError for an empty interval.
    """
    _check(interval)
    inside = len(times) if interval is None else int(_acts(interval, process, times).sum())
    return len(times) + inside * (calls(scale) - 1)


def _check(interval: Interval | None) -> None:
    if interval is not None and not 0 <= interval[0] < interval[1]:
        raise RecipeError(
            f"guidance: no noise level lies in the interval {list(interval)}",
            hint="give the smallest noise level, at least 0, and then the largest",
        )


def _acts(interval: Interval, process: Process | None, t: Tensor) -> Tensor:
    """Whether the ratio at t is in the interval: bool in t's shape."""
    assert process is not None, "an interval of ratios needs the process whose times they are"
    s = ratio(process, t.double())
    low, high = interval
    # Grids are made by roots and powers: a bound that is meant to be a grid point shall hold it despite their rounding.
    return (s >= low * (1 - 1e-9)) & (s <= high * (1 + 1e-9))
