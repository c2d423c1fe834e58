"""How sure a figure is: standard errors and intervals of what was measured on finitely many samples.

The bootstrap needs one value per sample. A figure of the whole set (a Frechet distance) is instead measured on disjoint
blocks, whose spread tells its standard error; resampling with replacement would move it, as its bias grows when samples
repeat. All random choices are seeded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor

from gentk.errors import RunFailed


class Interval(NamedTuple):
    """A figure and the ends of its confidence interval."""

    value: float
    low: float
    high: float


class Estimate(NamedTuple):
    """A figure and its standard error, in the same units."""

    value: float
    error: float

    def interval(self, level: float = 0.95) -> Interval:
        """value -+ z error, z the normal quantile."""
        reach = _normal(level) * self.error
        return Interval(self.value, self.value - reach, self.value + reach)


@dataclass(frozen=True)
class Blocks:
    """A figure measured on disjoint blocks of `size` samples each: `values`, one per block."""

    values: tuple[float, ...]
    size: int

    @property
    def error(self) -> float:
        """Standard error of the figure of all samples together: std of the blocks over the root of their number.

        Right where the variance falls as 1 / N; a distance of equal laws falls faster, and this is then too wide.
        """
        return float(torch.tensor(self.values, dtype=torch.float64).std()) / math.sqrt(len(self.values))

    def interval(self, value: float, level: float = 0.95) -> Interval:
        """Around `value`, the figure of all samples, by Student's t.

        The blocks' own mean would be the wrong centre: its bias is that of `size` samples.
        """
        reach = float(stdtrit(len(self.values) - 1, 0.5 + _share(level) / 2)) * self.error
        return Interval(value, value - reach, value + reach)


def disjoint_blocks(measure: Callable[[Tensor], float], n: int, *, count: int = 10, seed: int = 0) -> Blocks:
    """`measure` on `count` disjoint random blocks of n // count samples; it is given their indices, (size,) int64.

    Raises RunFailed if the blocks would have less than 2 samples.
    """
    if count < 2:
        raise ValueError(f"{count} blocks have no spread")
    size = n // count
    if size < 2:
        raise RunFailed(f"{n} samples are too few for {count} blocks", hint=f"at least {2 * count}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return Blocks(tuple(measure(order[i * size : (i + 1) * size]) for i in range(count)), size)


def mean(values: Tensor) -> float:
    """The mean over everything, in float64: the statistic of a measure that has one value per sample."""
    return float(values.double().mean())


def bootstrap(
    *samples: Tensor,
    statistic: Callable[..., float] = mean,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile interval of statistic(*samples) (Efron 1979) over resamplings of the first axis.

    samples: (N, ...) each, of one N; a sample's entries stay together in every resampling. The ends are quantiles of
    the resampled statistic; of few (20) or skewed samples they cover some 3 % less than `level`. One resampling is held
    at a time. Raises RunFailed for no samples, NaN or infinity.
    """
    n = _rows(*samples)
    share = _share(level)
    generator = torch.Generator().manual_seed(seed)
    found = torch.empty(resamples, dtype=torch.float64)
    for i in range(resamples):
        chosen = torch.randint(n, (n,), generator=generator)
        found[i] = statistic(*(x[chosen] for x in samples))
    low, high = torch.quantile(found, torch.tensor([(1 - share) / 2, (1 + share) / 2], dtype=torch.float64)).tolist()
    return Interval(statistic(*samples), low, high)


def paired_difference(
    a: Tensor,
    b: Tensor,
    *,
    statistic: Callable[[Tensor], float] = mean,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """statistic(a) - statistic(b) and its bootstrap interval, sample i of `a` paired with sample i of `b`: (N, ...).

    Both are resampled together: what they share (the noise, the prompt) cancels, as it should. Raises as `bootstrap`.
    """

    def difference(x: Tensor, y: Tensor) -> float:
        return statistic(x) - statistic(y)

    return bootstrap(a, b, statistic=difference, resamples=resamples, level=level, seed=seed)


def wilson(hits: float, n: float, *, level: float = 0.95) -> Interval:
    """The share hits / n and its score interval (Wilson 1927), within [0, 1] and of positive width even at its ends.

    Both may be fractions, where `n` is the number of independent trials that dependent ones are worth.
    """
    if not 0 <= hits <= n or n == 0:
        raise ValueError(f"{hits} of {n} is no proportion")
    z, p = _normal(level), hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, 0.0 if hits == 0 else middle - reach, 1.0 if hits == n else middle + reach)


def _rows(*samples: Tensor) -> int:
    sizes = {len(x) for x in samples}
    if len(sizes) != 1:
        raise RunFailed(f"samples of sizes {sorted(sizes)} are not paired", hint="the same samples, in the same order")
    if 0 in sizes:
        raise RunFailed("there are no samples to resample")
    if not all(x.isfinite().all() for x in samples):
        raise RunFailed("the values hold NaN or infinity")
    return sizes.pop()


def _share(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"a level of {level}, expected between 0 and 1")
    return level


def _normal(level: float) -> float:
    return NormalDist().inv_cdf(0.5 + _share(level) / 2)
