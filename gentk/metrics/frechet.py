"""Frechet distance between Gaussians fitted to two sets of features.

|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)): Dowson and Landau 1982; as a measure of generators Heusel et al.
2017 (arXiv:1706.08500), eq. 6. It may be called FID only with the InceptionV3 features of that paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gentk.errors import RunFailed

Array = NDArray[np.float64]
_ROWS = 4096  # held beside the features, centred


@dataclass(eq=False)
class Moments:
    """Count, mean and covariance of features that arrive in batches, in float64 (Chan, Golub and LeVeque 1979).

    `n` is the count, `mean` (D,), `scatter` (D, D) the sum of (x - mean)(x - mean)^T; `Moments()` is empty and takes
    its D from the first features.
    """

    n: int = 0
    mean: Array = field(default_factory=lambda: np.zeros(0))
    scatter: Array = field(default_factory=lambda: np.zeros((0, 0)))

    @classmethod
    def known(cls, n: int, mean: Array, covariance: Array) -> Moments:
        """Moments of `n` samples computed elsewhere: `mean` (D,) and unbiased `covariance` (D, D)."""
        mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
            raise RunFailed(f"a covariance of shape {covariance.shape} does not go with a mean of shape {mean.shape}")
        _finite(mean, covariance)
        return cls(n, mean, covariance * (n - 1))

    @property
    def covariance(self) -> Array:
        """The unbiased covariance (D, D). Raises RunFailed below two samples."""
        if self.n < 2:
            raise RunFailed(f"a covariance needs at least 2 samples, not {self.n}")
        return self.scatter / (self.n - 1)

    def update(self, features: Tensor | NDArray[np.floating]) -> Moments:
        """Take in a batch (N, D); returns self. Raises RunFailed for NaN, infinity or another D."""
        x = _array(features)
        if len(x) == 0:
            return self
        _finite(x)
        mean = x.mean(0)
        return self.merge(Moments(len(x), mean, (x - mean).T @ (x - mean)))

    def merge(self, other: Moments) -> Moments:
        """Take in the samples behind `other`, which stays as it is; returns self. Raises RunFailed for another D."""
        if other.n == 0:
            return self
        if self.n == 0:
            self.n, self.mean, self.scatter = other.n, other.mean.copy(), other.scatter.copy()
            return self
        _same_dimension(self, other)
        n = self.n + other.n
        shift = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + np.outer(shift, shift) * (self.n / n * other.n)
        self.mean = self.mean + shift * (other.n / n)
        self.n = n
        return self


def frechet(a: Moments, b: Moments) -> float:
    """The squared Frechet distance of N(a.mean, a.covariance) and N(b.mean, b.covariance), in squared feature units.

    tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2), which is
    similar to S1 S2 but, unlike it, fit for `eigvalsh`. Eigenvalues that rounding made negative count as 0, so
    singular covariances (fewer samples than dimensions) are welcome, though their zeros, of 1e-16, leave roots of 1e-8;
    `frechet_of` has none. Raises RunFailed below two samples or if the dimensions differ.
    """
    return frechet_to(a)(b)


def frechet_to(reference: Moments) -> Callable[[Moments], float]:
    """`frechet` to one reference, the root of whose covariance is taken once for all: half of the work."""
    s1 = reference.covariance
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T

    def distance(other: Moments) -> float:
        s2 = other.covariance
        _same_dimension(reference, other)
        product = root @ s2 @ root
        cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(0)).sum()
        return _assemble(reference.mean - other.mean, np.trace(s1) + np.trace(s2), cross)

    return distance


def frechet_of(a: Tensor | NDArray[np.floating], b: Tensor | NDArray[np.floating]) -> float:
    """The squared Frechet distance of Gaussians fitted to features `a` (N, D) and `b` (M, D).

    `frechet` of their moments unless a covariance is singular for want of samples, N or M <= D. Then exactly, and
    faster: for S1 = A^T A and S2 = B^T B the eigenvalues' roots are the singular values of A B^T, whose sum takes no
    root of a rounded zero. Such a distance is exact for these samples and yet says little of their laws: its bias is
    large. Raises RunFailed as `frechet`, and for NaN or infinity.
    """
    x, y = _array(a), _array(b)
    first, second = _moments(x), _moments(y)
    _same_dimension(first, second)
    if min(len(x), len(y)) > x.shape[1]:
        return frechet(first, second)
    left, right = _factor(x, first), _factor(y, second)
    cross = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    return _assemble(first.mean - second.mean, (left**2).sum() + (right**2).sum(), cross)


def _assemble(shift: Array, traces: float, cross: float) -> float:
    return max(0.0, float(np.sum(shift**2) + traces - 2 * cross))


def _moments(x: Array) -> Moments:
    result = Moments()
    for start in range(0, len(x), _ROWS):
        result.update(x[start : start + _ROWS])
    return result


def _factor(x: Array, moments: Moments) -> Array:
    """A with A^T A the covariance, of min(N, D) rows; by QR of one block of rows after another if N > D."""
    if len(x) < 2:
        raise RunFailed(f"a covariance needs at least 2 samples, not {len(x)}")
    factor: Array = np.zeros((0, x.shape[1]))
    for start in range(0, len(x), _ROWS):
        factor = np.vstack([factor, x[start : start + _ROWS] - moments.mean])
        if len(factor) > x.shape[1]:
            factor = np.asarray(np.linalg.qr(factor, mode="r"), np.float64)
    factor /= np.sqrt(len(x) - 1)
    return factor


def _array(features: Tensor | NDArray[np.floating]) -> Array:
    x = np.asarray(features.detach().cpu().double() if isinstance(features, Tensor) else features, np.float64)
    if x.ndim != 2:
        raise ValueError(f"features have shape {x.shape}, expected (N, D)")
    return x


def _finite(*arrays: Array) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise RunFailed("the features hold NaN or infinity", hint="the samples or the feature network are broken")


def _same_dimension(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise RunFailed(
            f"features of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared",
            hint="use one feature network for both sides",
        )
