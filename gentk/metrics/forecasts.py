"""CRPS of forecasts given as sample paths: the exact score of an ensemble, and the quantile form of the literature.

`paths` (S, ...) are S samples of what `truth` (...) turned out to be. For one number y and an ensemble F

    CRPS(F, y) = E|X - y| - E|X - X'| / 2 = 2 integral over q of (1[y < F^-1(q)] - q) (F^-1(q) - y) dq

(Gneiting and Raftery 2007, JASA 102, eqs. 20, 21). Papers on multivariate forecasting report the mean over 19
quantiles, divided by mean |y|, of each series and of the sum of all series ("CRPS-Sum"); figures in other forms do not
compare.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gentk.errors import RunFailed

LEVELS = tuple(k / 20 for k in range(1, 20))
"""5 % to 95 %: the quantiles of GluonTS's `mean_wQuantileLoss`."""


def crps(paths: Tensor, truth: Tensor) -> Tensor:
    """The exact CRPS of each number by its ensemble, X and X' both drawn from it (V-statistic): float64 (...)."""
    x, y = _pair(paths, truth)
    n = len(x)
    x = x.sort(0).values
    rank = torch.arange(1, n + 1, dtype=torch.float64).reshape(-1, *[1] * y.dim())
    spread = (2 * (2 * rank - n - 1) * x).sum(0) / n**2  # the mean of |x_i - x_j| over all pairs
    return (x - y).abs().mean(0) - 0.5 * spread


def weighted_quantile_loss(paths: Tensor, truth: Tensor, levels: tuple[float, ...] = LEVELS) -> float:
    """Mean over levels of 2 sum |(quantile - y) (1[y <= quantile] - level)| / sum |y|, over all numbers; 0 at best.

    Quantiles are the order statistic that GluonTS takes, of index round((S - 1) level). Raises RunFailed where all of
    `truth` is 0.
    """
    x, y = _pair(paths, truth)
    x = x.sort(0).values
    total = y.abs().sum()
    if total == 0:
        raise RunFailed("all of the truth is 0: a weighted quantile loss divides by it")
    losses = []
    for q in levels:
        quantile = x[round((len(x) - 1) * q)]
        losses.append(2 * ((quantile - y) * ((y <= quantile).double() - q)).abs().sum() / total)
    return float(torch.stack(losses).mean())


def crps_sum(paths: Tensor, truth: Tensor, levels: tuple[float, ...] = LEVELS) -> float:
    """`weighted_quantile_loss` of the sum over the last dimension, that of the series: their joint law counts."""
    return weighted_quantile_loss(paths.double().sum(-1), truth.double().sum(-1), levels)


def _pair(paths: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if paths.shape[1:] != truth.shape or not len(paths):
        raise ValueError(f"paths {tuple(paths.shape)} are not samples of a truth {tuple(truth.shape)}")
    x, y = paths.double(), truth.double()
    if not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise RunFailed("forecasts or truth are not all finite")
    return x, y
