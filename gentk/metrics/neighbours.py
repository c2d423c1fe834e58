"""Nearest-neighbour measures: precision and recall of a generator, and distances to the training set.

All distances are Euclidean, in float64, by |a|^2 + |b|^2 - 2ab around the common centre: one matrix product, faster
than differences. What that form cannot tell from 0, pairs nearer than a millionth of their distance to the centre, is
0: equal points are at distance 0 exactly, and ties under the <= rule do not depend on rounding. Work is done in blocks
of bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gentk.errors import RunFailed

_BLOCK = 2**23  # distances held at a time: 64 MB
_ZERO = 1e-12  # of the squares: far above their rounding (1e-14 at 64 dimensions), far below any distance that matters


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of features `real` (N, D) and `fake` (M, D), each in [0, 1].

    A set's manifold is the union of the balls around its points that reach to the k-th nearest other point. Precision
    is the share of fake points in the manifold of the real ones, recall the share of real points in that of the fake
    ones, borders included. Kynkaanniemi et al. 2019 (arXiv:1904.06991), eqs. 1 and 2. Raises RunFailed for sets of no
    more than k points, other dimensions, NaN or infinity.
    """
    real, fake = _pair(real, fake)
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    for name, points in (("real", real), ("fake", fake)):
        if len(points) <= k:
            raise RunFailed(f"{len(points)} {name} samples are too few for k = {k} neighbours")
    return _share_inside(fake, real, k), _share_inside(real, fake, k)


def nearest(a: Tensor, b: Tensor) -> Tensor:
    """Distance from each point of `a` (N, D) to the nearest point of `b` (M, D), shape (N,).

    A point of `a` that is also in `b` is at distance 0. Raises RunFailed if `b` is empty, the dimensions differ, or
    there is NaN or infinity.
    """
    a, b = _pair(a, b)
    if len(b) == 0:
        raise RunFailed("there are no points to find the nearest of")
    return torch.cat([a.new_empty(0), *(distances.amin(1) for distances in _distances(a, b))])


def _share_inside(points: Tensor, manifold: Tensor, k: int) -> float:
    # Each point is its own nearest neighbour, at distance 0: the k-th other one is number k + 1.
    nearest_ones = (distances.topk(k + 1, dim=1, largest=False) for distances in _distances(manifold, manifold))
    radii = torch.cat([found.values[:, -1] for found in nearest_ones])
    inside = sum(int((distances <= radii).any(1).sum()) for distances in _distances(points, manifold))
    return inside / len(points)


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Blocks of rows of the (N, M) matrix of distances, in order."""
    centre = b.mean(0)
    a, b = a - centre, b - centre
    b_square = b.square().sum(1)
    rows = max(1, _BLOCK // len(b))
    for part in torch.split(a, rows):
        square = part.square().sum(1, keepdim=True) + b_square
        distance = torch.addmm(square, part, b.T, alpha=-2)
        yield distance.masked_fill_(distance < _ZERO * square, 0.0).sqrt_()


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in float64, after the checks that they share."""
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}, expected (N, D) and (M, D)")
    if a.shape[1] != b.shape[1]:
        raise RunFailed(
            f"features of {a.shape[1]} and {b.shape[1]} dimensions cannot be compared",
            hint="use one feature network for both sides",
        )
    a, b = a.detach().double(), b.detach().double()
    if not (a.isfinite().all() and b.isfinite().all()):
        raise RunFailed("the features hold NaN or infinity", hint="the samples or the feature network are broken")
    return a, b
