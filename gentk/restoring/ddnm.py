"""Null-space denoising (Wang et al. 2023, DDNM, arXiv:2212.00490): what is measured is put into D, the rest stays D's.

With noise it is DDNM+ in the basis of H's singular vectors: a direction with singular value s_i takes the part

    l_i = min(1, n s_i / sigma),    n = u eta

of the correction H^+ (y - H D), whose noise l_i sigma / s_i then never exceeds the fresh noise n that the step adds
anyway; that is lowered to sqrt(n^2 - l_i^2 sigma^2 / s_i^2), so that every direction has noise n.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from gentk.operators import ROUNDING, Operator
from gentk.restoring import Denoise, Levels, Noise

POSTERIOR = "approximate"


@torch.no_grad()  # plain arithmetic on the denoiser's answers
def restore(
    denoise: Denoise,
    op: Operator,
    y: Tensor,
    sigma: float,
    x: Tensor,
    levels: Levels,
    noise: Noise,
    *,
    eta: float = 0.85,
) -> Tensor:
    """Corrected steps; the part `eta` of the next level's noise is fresh. With sigma = 0 the result has H x = y."""
    for s, u in pairwise(levels):
        x0 = denoise(x, s)
        fresh = u * eta
        mean = x0 + corrected(op, y - op(x0), sigma, fresh)
        if u == 0:
            return mean
        x = mean + u * math.sqrt(1 - eta**2) / s * (x - x0) + left(op, noise(x), sigma, fresh)
    return x


def corrected(op: Operator, gap: Tensor, sigma: float, fresh: float) -> Tensor:
    """V l s^-1 U^T (y - H D), l = 1 for sigma = 0."""
    return op.spectral(op.adjoint(gap), lambda s: _over(_part(s, sigma, fresh), s**2))


def left(op: Operator, xi: Tensor, sigma: float, fresh: float) -> Tensor:
    """The noise xi at the deviation that each direction still has room for."""

    def gain(s: Tensor) -> Tensor:
        taken = _over(_part(s, sigma, fresh) * sigma, s)
        return (fresh**2 - taken.square()).clamp_min(0).sqrt()

    return op.spectral(xi, gain)


def _part(s: Tensor, sigma: float, fresh: float) -> Tensor:
    return torch.ones_like(s) if sigma == 0 else (fresh * s / sigma).clamp_max(1.0)


def _over(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where nothing is measured."""
    measured = b > ROUNDING**2
    return torch.where(measured, a / torch.where(measured, b, torch.ones_like(b)), torch.zeros_like(b))
