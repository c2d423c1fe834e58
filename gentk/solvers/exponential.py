"""Exact weights of exponential Adams steps: the integral of a polynomial in lambda against the flow's own factor.

With tau constant on a step of length h, c = 1 + tau^2, z = c h, and evaluations D_j at lambda_j = lambda_u - v_j h (so
that v = 0 is the step's end, 1 its start, more than 1 the past), the reverse SDE with that tau has the solution

    x_u = sigma_u / sigma_t e^(-tau^2 h) x_t + alpha_u z int_0^1 e^(-z v) D(v) dv + sigma_u sqrt(1 - e^(-2 tau^2 h)) xi

(SA-Solver, arXiv:2309.05019, in v instead of lambda). D is replaced by the polynomial through the D_j, whose weights b
solve sum_j v_j^k b_j = alpha_u M_k(z). Written in v, no power of lambda itself appears and nothing cancels; in absolute
lambda and float32 the fourth-order weights lose every digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def moments(z: float, order: int) -> list[float]:
    """M_k(z) = z int_0^1 exp(-z v) v^k dv for k < order and z > 0; relative error below 1e-14 for k < 4."""
    if z < 2:  # the series; forward recursion would cancel
        found = []
        for k in range(order):
            total, term, n = 0.0, z, 0
            while abs(term) > 1e-20 * z:
                total += term / (n + k + 1)
                n += 1
                term *= -z / n
            found.append(total)
        return found
    found = [-math.expm1(-z)]
    for k in range(1, order):
        found.append(k / z * found[-1] - math.exp(-z))
    return found


def weights(alpha: float, h: float, tau: float, v: Sequence[float]) -> tuple[float, ...]:
    """b_j for evaluations at v_j, in their order; their sum is alpha (1 - e^-z). One node, at h = inf too: order 1."""
    z = (1 + tau**2) * h
    if len(v) == 1:
        return (-alpha * math.expm1(-z),)
    powers = np.vander(np.asarray(v, dtype=np.float64), increasing=True).T
    return tuple((alpha * np.linalg.solve(powers, moments(z, len(v)))).tolist())


def decay(h: float, tau: float) -> float:
    """e^(-tau^2 h): 1 for tau = 0 even where h = inf."""
    return math.exp(-(tau**2) * h) if tau else 1.0


def spread(h: float, tau: float) -> float:
    """sqrt(1 - e^(-2 tau^2 h)): the step's noise in units of sigma_u."""
    return math.sqrt(-math.expm1(-2 * tau**2 * h)) if tau else 0.0
