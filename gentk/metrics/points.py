"""Two-sample measures of points of few dimensions, and the kernel Stein discrepancy to a law whose score is known.

Points are (N, D) of any float type, taken to float64; sizes may differ. All random choices are seeded, and memory is
bounded beside some copies of the points. Every function raises RunFailed for other dimensions, NaN, infinity, or too
few points. Equal laws have an expected value of 0 for MMD, energy distance and KSD, which therefore may be negative,
and 1/2 for the classifier; not so sliced Wasserstein distances, which fall with N: compare them at equal N.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gentk.errors import RunFailed
from gentk.metrics.intervals import Estimate, Interval, wilson
from gentk.metrics.kernel import mmd_squared
from gentk.metrics.neighbours import blocks, distances, gather, pair


def median_distance(x: Tensor, y: Tensor, *, most: int = 1000, seed: int = 0) -> float:
    """Median distance between different points of both sets together, the usual bandwidth (Gretton et al. 2012).

    Of at most `most` random points of each set. Depends on both: fix it by the reference when figures are compared.
    """
    generator = torch.Generator().manual_seed(seed)
    both = torch.cat([part[torch.randperm(len(part), generator=generator)[:most]] for part in pair(x, y)])
    if len(both) < 2:
        raise RunFailed(f"{len(both)} points have no distance")
    median = float(torch.pdist(both).median())
    if median == 0:
        raise RunFailed("most of the points coincide: their median distance is 0")
    return median


def mmd(x: Tensor, y: Tensor, bandwidth: float) -> Estimate:
    """Unbiased squared MMD with the kernel exp(-|x - y|^2 / (2 bandwidth^2)), and its standard error.

    Gretton et al. 2012 (JMLR 13), eq. 3 without the diagonals. In [-2, 2].
    """
    if not bandwidth > 0:
        raise ValueError(f"a bandwidth of {bandwidth}, expected a positive one")

    def kernel(a: Tensor, b: Tensor) -> Iterator[Tensor]:
        for block in distances(a, b):
            yield block.square_().mul_(-0.5 / bandwidth**2).exp_()

    return mmd_squared(*pair(x, y), kernel)


def energy_distance(x: Tensor, y: Tensor) -> Estimate:
    """2 E|x - y| - E|x - x'| - E|y - y'| without bias, in units of the points, and its standard error.

    Szekely and Rizzo 2013 (J. Stat. Plan. Inference 143); not the root that SciPy's `energy_distance` takes.
    """

    def kernel(a: Tensor, b: Tensor) -> Iterator[Tensor]:
        for block in distances(a, b):
            yield block.neg_()

    return mmd_squared(*pair(x, y), kernel)


def wasserstein_1d(x: Tensor, y: Tensor, p: float = 1) -> Tensor:
    """The Wasserstein-p distance of each column of `x` (N, K) and `y` (M, K), p >= 1: (K,) float64.

    Exact: (integral of |Fx^-1(u) - Fy^-1(u)|^p du)^(1/p), where both quantile functions are steps.
    """
    x, y = pair(x, y)
    return _transport(x, y, p).pow(1 / p)


def sliced_wasserstein(x: Tensor, y: Tensor, p: float = 2, *, directions: int = 500, seed: int = 0) -> float:
    """(mean over random directions of W_p^p of the projections)^(1/p): Bonneel et al. 2015 (J. Math. Imaging Vis. 51).

    In units of the points; directions are uniform on the sphere, the same for one `seed` whatever the points.
    """
    x, y = pair(x, y)
    if directions < 1:
        raise ValueError(f"{directions} directions, expected at least 1")
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(directions, x.shape[1], generator=generator, dtype=torch.float64)
    unit = normal / normal.norm(dim=1, keepdim=True)
    costs = [_transport(x @ part.T, y @ part.T, p) for part in blocks(unit, len(x) + len(y))]
    return float(torch.cat(costs).mean().pow(1 / p))


def _transport(x: Tensor, y: Tensor, p: float) -> Tensor:
    """W_p^p of each column."""
    n, m = len(x), len(y)
    if min(n, m) < 1:
        raise RunFailed("there are no points to compare")
    if p < 1:
        raise ValueError(f"p is {p}, expected at least 1")
    # Both quantile functions are constant between the levels i / n and j / m, counted exactly in units of 1 / (n m).
    levels = torch.from_numpy(np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n))
    weights = levels.diff(prepend=levels.new_zeros(1)).double() / (n * m)
    gap = x.sort(0).values[(levels - 1) // m] - y.sort(0).values[(levels - 1) // n]
    cost: Tensor = weights @ gap.abs_().pow_(p)
    return cost


@dataclass(frozen=True)
class C2st:
    """Held-out accuracy with its interval, over `n` points of each set."""

    accuracy: Interval
    n: int


def c2st(
    x: Tensor,
    y: Tensor,
    *,
    classifier: Literal["neighbours", "logistic"] = "neighbours",
    folds: int = 5,
    seed: int = 0,
    level: float = 0.95,
) -> C2st:
    """Classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv:1610.06545): can held-out points be told apart?

    Accuracy over stratified folds; 1/2 if not, 1 if always. `neighbours` votes among 5 and sees any difference of few
    dimensions; `logistic` is linear and sees that of means only. Coordinates are standardised. Of the larger set a
    random part as large as the smaller is used. The interval is Wilson's with the variance of Nadeau and Bengio 2003
    (Mach. Learn. 52), eq. 9: as every point also trains the judges of others, 2 n predictions are worth fewer trials,
    and the plain binomial interval of 95 % holds the truth in some 85 %.
    """
    from sklearn.linear_model import LogisticRegression  # a second of imports that other measures do without
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = pair(x, y)
    n = min(len(x), len(y))
    if n < 2 * folds:
        raise RunFailed(f"{n} points of a set are too few for {folds} folds", hint=f"at least {2 * folds}")
    generator = torch.Generator().manual_seed(seed)
    both = torch.cat([part[torch.randperm(len(part), generator=generator)[:n]] for part in (x, y)]).numpy()
    label = torch.arange(2).repeat_interleave(n).numpy()
    judge = LogisticRegression() if classifier == "logistic" else KNeighborsClassifier(5)
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    guess = cross_val_predict(make_pipeline(StandardScaler(), judge), both, label, cv=parts)
    trials = 2 * n / (1 + folds / (folds - 1))
    return C2st(wilson(float((guess == label).mean()) * trials, trials, level=level), n)


def ksd(x: Tensor, score: Tensor, scale: float = 1.0) -> Estimate:
    """Squared kernel Stein discrepancy of points `x` (N, D) to the law whose score at them is `score` (N, D).

    The U-statistic of Liu, Lee and Jordan 2016 (arXiv:1602.03253), eqs. 5 and 6, with the kernel
    (scale^2 + |x - y|^2)^(-1/2), which, unlike a Gaussian one, notices points that wander off (Gorham and Mackey 2017,
    arXiv:1703.01717). Its standard error as in `mmd_squared`. Blind, as all that know scores alone, to the weights of
    modes far apart.
    """
    x, score = pair(x, score)
    n, d = x.shape
    if score.shape != x.shape:
        raise ValueError(f"scores have shape {tuple(score.shape)}, points {tuple(x.shape)}")
    if n < 2:
        raise RunFailed(f"{n} points are too few for a Stein discrepancy", hint="at least 2")
    if not scale > 0:
        raise ValueError(f"a scale of {scale}, expected a positive one")
    x = x - x.mean(0)
    own = (score * x).sum(1)

    def sums() -> Iterator[Tensor]:
        start = 0
        for block in distances(x, x):
            rows = slice(start, start + len(block))
            square = block.square_()
            q = square + scale**2
            # (s(y) - s(x)).(x - y): the two terms with one gradient of the kernel.
            pull = x[rows] @ score.T + score[rows] @ x.T - own[rows, None] - own
            # u(x, y) = s(x).s(y) k + s(x).grad_y k + s(y).grad_x k + tr grad_x grad_y k
            u = (score[rows] @ score.T - (pull - d) / q - 3 * square / q**2) / q.sqrt()
            yield u.sum(1) - u.diagonal(offset=start)
            start += len(block)

    each = gather(n, sums()) / (n - 1)
    return Estimate(float(each.mean()), float(2 * (each.var() / n).sqrt()))
