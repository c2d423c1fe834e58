"""What the draws of a sampler are worth beside draws of its target: distances with their null bands, masses, moments.

A null band is what the same measure gives between two sets of reference draws of the same sizes: its quantile over
random splits of both together. A figure inside is no finding. Kernel Stein discrepancies are blind to the weights of
modes far apart (as is the Fisher divergence): they are never reported alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from gentk.metrics.points import median_distance, sliced_wasserstein
from gentk.solvers import Noise, mala
from gentk.solvers.chains import LogProb, at

WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Of the Gaussian kernels of `mmd`, times the reference's median distance."""
_LEVEL = 0.95


class Banded(NamedTuple):
    """A figure and the upper end of its null band."""

    value: float
    null: float


def mmd(x: Tensor, y: Tensor, other: Tensor, *, splits: int = 200, seed: int = 0) -> Banded:
    """Unbiased squared MMD of x and y (n, D) each, the mean over five Gaussian widths; the null by y and `other`.

    All three hold n draws, the last two of the reference. 4 n^2 kernel values are held in float32.
    """
    n = _equal(x, y, other)
    width = median_distance(y, other)
    first = torch.cat([torch.ones(n), torch.zeros(n)])[:, None]
    value = float(_squared(_kernels(torch.cat([x, y]), width), first)[0])
    gen = torch.Generator().manual_seed(seed)
    parts = torch.stack([torch.randperm(2 * n, generator=gen) < n for _ in range(splits)], 1).float()
    null = _squared(_kernels(torch.cat([y, other]), width), parts)
    return Banded(value, float(null.quantile(_LEVEL)))


def _equal(*sets: Tensor) -> int:
    sizes = {len(each) for each in sets}
    if len(sizes) != 1:
        raise ValueError(f"sets of {sorted(sizes)} draws, expected equal ones")
    return sizes.pop()


def _kernels(points: Tensor, width: float) -> Tensor:
    """The mean of the kernels exp(-|a - b|^2 / 2 h^2) over the widths, its diagonal 0: (N, N) float32."""
    centred = (points - points.mean(0)).double()
    norms = centred.square().sum(1)
    square = (norms[:, None] + norms - 2 * centred @ centred.T).clamp_(min=0).float()
    total = torch.zeros_like(square)
    for each in WIDTHS:
        total += torch.exp(square * (-0.5 / (each * width) ** 2))
    total /= len(WIDTHS)
    return total.fill_diagonal_(0)


def _squared(kernel: Tensor, first: Tensor) -> Tensor:
    """Squared MMD of the points in a split and the others, by U-statistics: first (N, S) of 0 and 1 -> (S,) float64."""
    n = first.sum(0).double()
    m = len(first) - n
    inner = (kernel @ first).double()
    total = kernel.sum(1).double()
    one = first.double()
    both = (one * inner).sum(0)
    cross = ((1 - one) * inner).sum(0)
    rest = total.sum() - both - 2 * cross
    return both / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * cross / (n * m)


def sliced(x: Tensor, y: Tensor, other: Tensor, *, directions: int = 200, splits: int = 40, seed: int = 0) -> Banded:
    """Sliced Wasserstein-2 distance of x and y (n, D) each, in units of the points; the null as in `mmd`."""
    n = _equal(x, y, other)
    value = sliced_wasserstein(x, y, directions=directions, seed=seed)
    gen = torch.Generator().manual_seed(seed)
    pool = torch.cat([y, other])
    nulls = []
    for _ in range(splits):
        order = torch.randperm(2 * n, generator=gen)
        nulls.append(sliced_wasserstein(pool[order[:n]], pool[order[n:]], directions=directions, seed=seed))
    return Banded(value, float(torch.tensor(nulls, dtype=torch.float64).quantile(_LEVEL)))


class Masses(NamedTuple):
    """Shares of the draws in each region: ours and the reference's (K,), the largest difference and its null band."""

    ours: Tensor
    theirs: Tensor
    error: float
    null: float


def masses(x: Tensor, y: Tensor, centres: Tensor | None, *, splits: int = 2000, seed: int = 0) -> Masses:
    """The masses of modes: of the cells nearest to `centres` (K, D), else of the orthants about y's median.

    Orthants of the first two coordinates. x (N, D) draws, y (M, D) of the reference. The null is the largest difference
    between shares of N and M draws of the same law, by random draws of the multinomial.
    """
    if centres is None:
        middle = y[:, :2].median(0).values
        cells = [((each[:, :2] > middle).long() @ torch.tensor([1, 2][: each.shape[1]])) for each in (x, y)]
        count = 2 ** min(2, x.shape[1])
    else:
        cells = [torch.cdist(each.double(), centres.double()).argmin(1) for each in (x, y)]
        count = len(centres)
    ours, theirs = (cell.bincount(minlength=count).double() / len(cell) for cell in cells)
    gen = torch.Generator().manual_seed(seed)
    # a normal law of the multinomial's covariance: exact enough for a quantile at hundreds of draws
    spread = (1 / len(x) + 1 / len(y)) ** 0.5
    z = torch.randn(splits, count, generator=gen, dtype=torch.float64) * theirs.sqrt()
    differences = spread * (z - theirs * z.sum(1, keepdim=True))
    null = float(differences.abs().amax(1).quantile(_LEVEL))
    return Masses(ours, theirs, float((ours - theirs).abs().max()), null)


class Moments(NamedTuple):
    """By coordinate (D,): the mean's error in reference deviations, and the ratio of deviations."""

    shift: Tensor
    ratio: Tensor


def moments(x: Tensor, y: Tensor) -> Moments:
    """Of draws x (N, D) beside the reference's y (M, D)."""
    x, y = x.double(), y.double()
    return Moments((x.mean(0) - y.mean(0)) / y.std(0), x.std(0) / y.std(0))


def acceptance(log_prob: LogProb, x: Tensor, step_size: float, noise: Noise) -> float:
    """Mean acceptance of one MALA step from the draws x (N, D): log_prob (N, D) -> (N,)."""
    _, log_accept = mala.step(at(log_prob, x), log_prob, step_size, noise)
    return float(log_accept.clamp(max=0).exp().mean())


def tuned(log_prob: LogProb, x: Tensor, noise: Noise, *, wanted: float = mala.TARGET_ACCEPT) -> float:
    """The step size at which draws x (N, D) of the target itself are accepted `wanted` of the time, to a few percent.

    By bisection of its logarithm: what a sampler's draws are then measured at.
    """
    low, high = math.log(1e-6), math.log(1e3)
    for _ in range(18):
        middle = (low + high) / 2
        if acceptance(log_prob, x, math.exp(middle), noise) > wanted:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def break_even(training: float, by_chain: float, by_sampler: float) -> float:
    """N* = T / (t_chain - t_sampler): the number of draws from which training has paid; inf where it never does.

    Seconds of the training, and per effective draw of the chains, and per draw of the sampler.
    """
    gain = by_chain - by_sampler
    return training / gain if gain > 0 else math.inf


def timed(draw: Callable[[Tensor], Tensor], n: int, dim: int, gen: Generator, *, repeats: int = 3) -> float:
    """Seconds for n draws of a sampler by one call each of `draw`, the best of several, after one to warm up."""
    where = gen.device

    def once() -> float:
        begun = time.perf_counter()
        with torch.no_grad():
            draw(torch.randn(n, dim, generator=gen, device=where))
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        return time.perf_counter() - begun

    once()
    return min(once() for _ in range(repeats))
