"""Kernel distances: the unbiased squared maximum mean discrepancy (MMD), and KID, which averages it over subsets.

E k(x, x') + E k(y, y') - 2 E k(x, y): Gretton et al. 2012 (JMLR 13), eq. 3 without the diagonals; with the cubic kernel
on Inception features the Kernel Inception Distance, Binkowski et al. 2018 (arXiv:1801.01401). Unlike the Frechet
distance these have no bias at any N, so that they may be negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gentk.errors import RunFailed
from gentk.metrics.intervals import Estimate
from gentk.metrics.neighbours import blocks, gather, pair

Kernel = Callable[[Tensor, Tensor], Iterator[Tensor]]  # blocks of rows of the matrix k(a_i, b_j), in order


@dataclass(frozen=True)
class Kid:
    """The mean over `subsets` subsets of `size` samples of each side.

    `std` is the spread of the subsets as the field prints it (division by their number). `error` is the standard error
    of `mean` for the samples at hand (see `overlapping_error`). `values` are the subsets' own, `shared` the part of
    its samples that one subset has in common with another, on average.
    """

    mean: float
    std: float
    error: float
    subsets: int
    size: int
    values: tuple[float, ...]
    shared: float


def kid(real: Tensor, fake: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> Kid:
    """KID of features (N, D) and (M, D): mean unbiased MMD^2 over seeded subsets, kernel (x.y / D + 1)^3.

    Each subset is drawn without replacement from each side. Raises RunFailed for fewer than `size` samples on either
    side, other dimensions, NaN or infinity.
    """
    real, fake = pair(real, fake)
    if size < 2 or subsets < 1:
        raise ValueError(f"{subsets} subsets of {size}, expected at least 1 of 2")
    fewest = min(len(real), len(fake))
    if fewest < size:
        raise RunFailed(f"{fewest} samples are too few for subsets of {size}", hint=f"a size of {fewest // 2} or less")
    generator = torch.Generator().manual_seed(seed)

    def subset(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[:size]]

    values = torch.tensor(
        [mmd_squared(subset(real), subset(fake), cubic).value for _ in range(subsets)], dtype=torch.float64
    )
    shared = size / fewest
    std, error = float(values.std(correction=0)), overlapping_error(values, shared)
    return Kid(float(values.mean()), std, error, subsets, size, tuple(values.tolist()), shared)


def overlapping_error(values: Tensor, shared: float) -> float:
    """Standard error of the mean of figures (S,) of random subsets that share the part `shared` of their samples.

    Two of them correlate (to first order) by that much, r. The mean of S has variance v (1/S + (1 - 1/S) r), their
    spread around it an expectation of v (1 - r): not v / S. NaN for one subset or if each is the whole set.
    """
    count = len(values)
    if count < 2 or shared >= 1:
        return math.nan
    return float(values.std()) * math.sqrt(1 / count + shared / (1 - shared))


def cubic(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """The kernel of KID: (a.b / D + 1)^3."""
    for part in blocks(a, len(b)):
        yield (part @ b.T).div_(a.shape[1]).add_(1).pow_(3)


def mmd_squared(x: Tensor, y: Tensor, kernel: Kernel) -> Estimate:
    """The unbiased squared MMD of `x` (N, D) and `y` (M, D), float64, and its standard error.

    The error is that of the first-order (Hajek) projection, as wide as it must be for different laws; for equal laws,
    where the first order vanishes, about 1.4 times too wide. Raises RunFailed below 2 samples.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise RunFailed(f"{min(n, m)} samples are too few for an unbiased kernel distance", hint="at least 2")
    of_x, of_y = _others(x, kernel) / (n - 1), _others(y, kernel) / (m - 1)
    columns = torch.zeros(m, dtype=torch.float64)

    def rows() -> Iterator[Tensor]:
        for block in kernel(x, y):
            columns.add_(block.sum(0))
            yield block.sum(1)

    x_to_y, y_to_x = gather(n, rows()) / m, columns / n
    value = of_x.mean() + of_y.mean() - 2 * x_to_y.mean()
    error = 2 * ((of_x - x_to_y).var() / n + (of_y - y_to_x).var() / m).sqrt()
    return Estimate(float(value), float(error))


def _others(x: Tensor, kernel: Kernel) -> Tensor:
    """sum over j != i of k(x_i, x_j): (N,)."""

    def sums() -> Iterator[Tensor]:
        start = 0
        for block in kernel(x, x):
            yield block.sum(1) - block.diagonal(offset=start)
            start += len(block)

    return gather(len(x), sums())
