"""Exact Gaussian kernels of a multivariate Ornstein-Uhlenbeck process with any matrix drift.

    dx = -beta(t) D(t) x / 2 dt + sqrt(beta(t)) dW,     x_t | x_0 ~ N(m x_0, C)
    m' = -beta D m / 2,     C' = -beta (D C + C D^T) / 2 + beta I,     b = integral of beta

D need not be symmetric, nor commute with itself at another time. All in float64 on D's device. `gentk.processes.linear`
holds the commuting case in which solvers work by coordinates; this file is the general one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

_SMALL = 0.5  # |D| b of a block exponential; beyond, e^(-D b/2) and e^(D b/2) in one matrix would cancel or overflow


def kernel(drift: Tensor, b: float) -> tuple[Tensor, Tensor]:
    """(m, C), each (d, d), of a constant D (d, d) after b = integral of beta >= 0.

    By the block exponential (C H; H) = expm [[-D b/2, b I], [0, D^T b/2]] (0; I) over b / 2^k, then k doublings
    (m, C) -> (m m, m C m^T + C), which are exact too and keep a D with negative eigenvalues from overflowing.
    """
    drift = drift.double()
    d, doublings = len(drift), 0
    size = float(torch.linalg.matrix_norm(drift, 1)) * b
    while size > _SMALL:
        size, doublings = size / 2, doublings + 1
    b /= 2**doublings
    one = torch.eye(d, dtype=torch.float64, device=drift.device)
    block = torch.cat([torch.cat([-0.5 * b * drift, b * one], 1), torch.cat([0 * one, 0.5 * b * drift.T], 1)])
    power = torch.linalg.matrix_exp(block)
    mean, cov = power[:d, :d], torch.linalg.solve(power[d:, d:], power[:d, d:], left=False)
    for _ in range(doublings):
        mean, cov = mean @ mean, mean @ cov @ mean.T + cov
    return mean, 0.5 * (cov + cov.T)


def ordered(
    drift: Callable[[float], Tensor], b: Callable[[float], float], times: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """(m, C) at each of `times`, increasing from 0, for a D(t) that varies: the time-ordered product of `kernel`s.

    D is taken at the middle of each step, where the error is of second order in it. `b(t)` is the integral of beta from
    0 to t. Not the block exponential of the integral of beta D: that is exact only where D(t) + D(t)^T is constant.
    """
    d = len(drift(times[0]))
    mean = torch.eye(d, dtype=torch.float64)
    cov = torch.zeros(d, d, dtype=torch.float64)
    found = [(mean, cov)]
    for t, u in pairwise(times):
        m, c = kernel(drift(0.5 * (t + u)), b(u) - b(t))
        mean, cov = m @ mean, m @ cov @ m.T + c
        found.append((mean, cov))
    return found
