"""The Frechet distance of infinitely many samples, by extrapolation.

FD_N has a bias of c / N to first order, with a c that depends on the generator, so that even equal N do not make two
generators comparable. Chong and Forsyth 2020 (arXiv:1911.07023) fit a line in 1 / N and take its intercept; sizes as in
Stein et al. 2023 (arXiv:2306.04675), whose subsets, unlike these, are not seeded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gentk.errors import RunFailed
from gentk.metrics.frechet import Moments, frechet_to

_ROWS = 4096  # features of a subset copied at a time


@dataclass(frozen=True)
class FdInfinity:
    """FD_N = value + slope / N, fitted by least squares to `distances` at `sizes` samples.

    `error` is the standard error of `value` by the scatter around the line alone. The subsets share samples: what
    another set of samples would change is not in it, and is larger (see `intervals.disjoint_blocks`).
    """

    value: float
    error: float
    slope: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def fd_infinity(
    reference: Moments, fake: Tensor, *, points: int = 15, smallest: int | None = None, seed: int = 0
) -> FdInfinity:
    """Extrapolate the distance of features `fake` (N, D) to `reference`, which keeps its own bias.

    At `points` sizes evenly spaced from `smallest` (None: 5000, but no more than N / 10) to N, each a random subset
    without replacement. Below some D samples the distance bends away from the line; choose `smallest` above. The value
    may be negative. Raises RunFailed for too few samples, or as `frechet`.
    """
    n = len(fake)
    smallest = min(5000, n // 10) if smallest is None else smallest
    if points < 3:
        raise ValueError(f"{points} points, expected at least 3 for a line with an error")
    if smallest < 2 or n - smallest < points - 1:
        raise RunFailed(
            f"{n} samples are too few for {points} sizes from {smallest} on", hint=f"at least {max(20, 2 * points)}"
        )
    sizes = [int(size) for size in np.linspace(smallest, n, points)]
    generator = torch.Generator().manual_seed(seed)
    distance = frechet_to(reference)
    found = []
    for size in sizes:
        moments = Moments()
        for rows in torch.split(torch.randperm(n, generator=generator)[:size], _ROWS):
            moments.update(fake[rows])
        found.append(distance(moments))
    value, slope, error = _line(1 / np.array(sizes), np.array(found))
    return FdInfinity(value, error, slope, tuple(sizes), tuple(found))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Intercept and slope of the least-squares line, and the intercept's standard error."""
    offset = x - x.mean()
    spread = (offset**2).sum()
    slope = (offset * y).sum() / spread
    intercept = y.mean() - slope * x.mean()
    noise = ((y - intercept - slope * x) ** 2).sum() / (len(x) - 2)
    return float(intercept), float(slope), float(np.sqrt(noise * (1 / len(x) + x.mean() ** 2 / spread)))
