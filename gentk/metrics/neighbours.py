"""Nearest-neighbour measures: precision, recall, density and coverage of a generator, distances to the training set.

All distances are Euclidean, in float64, by |a|^2 + |b|^2 - 2ab around the common centre: one matrix product, faster
than differences. What that form cannot tell from 0, pairs nearer than a millionth of their distance to the centre, is
0: equal points are at distance 0 exactly. Whether a point on the border of a ball is inside is a rule that differs
between the measures, `<=` or `<`, and is stated at each; a distance within 1e-10 of the radius is on the border, so
that no tie is decided by rounding. Work is done in blocks of bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gentk.errors import RunFailed

_BLOCK = 2**21  # distances in a block: 16 MB; larger ones are no faster
_ZERO = 1e-12  # of the squares: far above their rounding (1e-14 at 64 dimensions), far below any distance that matters
_TIE = 1e-10  # of a radius: likewise


class Prdc(NamedTuple):
    """Precision, recall and coverage are shares, in [0, 1]; density is 1 for equal laws and may be larger."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of features `real` (N, D) and `fake` (M, D), each in [0, 1]; rule `<=`.

    A set's manifold is the union of the balls around its points that reach to the k-th nearest other point. Precision
    is the share of fake points in the manifold of the real ones, recall the share of real points in that of the fake
    ones, borders included. Kynkaanniemi et al. 2019 (arXiv:1904.06991), eqs. 1 and 2. Raises RunFailed for sets of no
    more than k points, other dimensions, NaN or infinity.
    """
    found = _measure(real, fake, k, border=True).means()
    return found.precision, found.recall


class Neighbourhoods(NamedTuple):
    """What the four figures are the means of, by sample: of the fake ones (M,), or of the real ones (N,); float64."""

    precision: Tensor  # of each fake sample: 1 where a real sample's ball holds it
    recall: Tensor  # of each real sample: 1 where a fake sample's ball holds it
    inside: Tensor  # of each fake sample: the number of real samples' balls that hold it
    coverage: Tensor  # of each real sample: 1 where its ball holds a fake sample
    k: int

    @property
    def density(self) -> Tensor:
        """Of each fake sample: that number over k."""
        return self.inside / self.k

    def means(self) -> Prdc:
        """The figures."""
        density = float(self.inside.sum()) / (self.k * len(self.inside))  # exact where the counts are
        precision, recall, coverage = (float(each.mean()) for each in (self.precision, self.recall, self.coverage))
        return Prdc(precision, recall, density, coverage)


def prdc(real: Tensor, fake: Tensor, k: int = 5) -> Prdc:
    """Precision, recall, density and coverage of features `real` (N, D) and `fake` (M, D); rule `<` for all four.

    Precision and recall as above, but without the borders. Density is the mean number of real points' balls that a fake
    point lies in, over k; coverage the share of real points' balls that hold a fake point. Naeem et al. 2020
    (arXiv:2002.09797), eqs. 3 and 4, with the conventions of their package `prdc`. Raises as `precision_recall`.
    """
    return neighbourhoods(real, fake, k).means()


def neighbourhoods(real: Tensor, fake: Tensor, k: int = 5, *, border: bool = False) -> Neighbourhoods:
    """What `prdc` averages, or with `border` what `precision_recall` does, sample by sample. Raises as that."""
    return _measure(real, fake, k, border=border)


def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[float, float]:
    """The two last figures of `prdc`, rule `<`."""
    found = prdc(real, fake, k)
    return found.density, found.coverage


def nearest(a: Tensor, b: Tensor) -> Tensor:
    """Distance from each point of `a` (N, D) to the nearest point of `b` (M, D), shape (N,).

    A point of `a` that is also in `b` is at distance 0. Raises RunFailed if `b` is empty, the dimensions differ, or
    there is NaN or infinity.
    """
    a, b = pair(a, b)
    if len(b) == 0:
        raise RunFailed("there are no points to find the nearest of")
    return gather(len(a), (block.amin(1) for block in distances(a, b)))


def _measure(real: Tensor, fake: Tensor, k: int, *, border: bool) -> Neighbourhoods:
    real, fake = pair(real, fake)
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    for name, points in (("real", real), ("fake", fake)):
        if len(points) <= k:
            raise RunFailed(f"{len(points)} {name} samples are too few for k = {k} neighbours")
    # Distances never meet these: the border lies outside or inside by the rule's choice.
    of_real, of_fake = (_radii(points, k) * (1 + _TIE if border else 1 - _TIE) for points in (real, fake))
    within = torch.le if border else torch.lt
    start = 0
    inside = torch.zeros(len(fake), dtype=torch.float64)
    covered, recalled = torch.zeros(len(real), dtype=torch.bool), torch.zeros(len(real), dtype=torch.bool)
    for block in distances(fake, real):
        balls = within(block, of_real)
        inside[start : start + len(block)] = balls.sum(1)
        covered |= balls.any(0)
        recalled |= within(block, of_fake[start : start + len(block), None]).any(0)
        start += len(block)
    return Neighbourhoods((inside > 0).double(), recalled.double(), inside, covered.double(), k)


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest other one: (N,)."""
    # Each point is its own nearest neighbour, at distance 0: the k-th other one is number k + 1.
    found = (block.topk(k + 1, dim=1, largest=False).values[:, -1] for block in distances(points, points))
    return gather(len(points), found)


def blocks(a: Tensor, columns: int) -> Iterator[Tensor]:
    """Rows of `a`, as many at a time as bounded memory allows for a matrix of `columns` columns."""
    yield from torch.split(a, max(1, _BLOCK // columns))


def gather(n: int, parts: Iterable[Tensor]) -> Tensor:
    """Figures of each row, from those of one block after another: (n,) float64.

    Written into one tensor: small ones kept from every block would lie where the blocks were, so that the next do not
    fit there, and the process would grow towards the size of the whole matrix.
    """
    result, start = torch.empty(n, dtype=torch.float64), 0
    for part in parts:
        result[start : start + len(part)] = part
        start += len(part)
    return result


def distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Blocks of rows of the (N, M) matrix of distances, in order."""
    centre = b.mean(0)
    a, b = a - centre, b - centre
    b_square = b.square().sum(1)
    for part in blocks(a, len(b)):
        yield _block(part, b, b_square)


def _block(a: Tensor, b: Tensor, b_square: Tensor) -> Tensor:
    square = a.square().sum(1, keepdim=True) + b_square
    distance = torch.addmm(square, a, b.T, alpha=-2)
    return distance.masked_fill_(distance < square.mul_(_ZERO), 0.0).sqrt_()


def pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
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
