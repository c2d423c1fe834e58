"""The variational step of VSDM (Deng et al. 2024, arXiv:2405.04795): the matrix A from backward trajectories.

On trajectories z of the reverse SDE from the prior, with the score s of the current process and its A_old,

    L(A) = integral of beta E[ |A z|^2 / 2 + (A z).(s - A_old z) + zeta tr A ] dt

tr A is exact, where the published code estimates it by a probe. With b the integral of beta, the moments

    S = integral of E[z z^T] db     K = integral of E[z (s - A_old z)^T] db     w = integral of db

give L = tr(A S A^T) / 2 + tr(A K) + zeta w tr A, least over symmetric A where A S + S A = -(K + K^T + 2 zeta w I), and
over diagonal A at a = -(K_ii + zeta w) / S_ii. zeta = 1 is the bridge itself; zeta < 1, the published setting
for few steps, lets the process end wider than the prior, and shrinks what is drawn from the standard one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentk.processes.linear import Linear, share

_LEAST = 1e-2  # the smallest variance that Heun's 200 steps follow


@dataclass(frozen=True)
class Moments:
    """Per cell of time: S and K of coordinates (cells, groups) or of matrices (cells, d, d); w (cells,). Float64.

    A group of several coordinates has the sums of its coordinates, and `counts` says how many it has.
    """

    second: Tensor
    cross: Tensor
    weight: Tensor
    counts: Tensor

    def push(self, zeta: float) -> Tensor:
        """zeta w times the gradient of tr A: (cells, groups)."""
        return zeta * self.weight[:, None] * self.counts


def trapezoid(b: Tensor) -> Tensor:
    """Weights (n,) of the trapezoidal rule at decreasing or increasing nodes b (n,)."""
    gap = b.diff().abs()
    ends = gap.new_zeros(1)
    return 0.5 * (torch.cat([ends, gap]) + torch.cat([gap, ends]))


def diagonal(moments: Moments, zeta: float) -> Tensor:
    """The least of L over diagonal A, (cells, groups). A coordinate without variance keeps what `cross` implies: 0."""
    safe = moments.second.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(moments.second > 0, -(moments.cross + moments.push(zeta)) / safe, 0.0)


def symmetric(moments: Moments, zeta: float) -> Tensor:
    """The least of L over symmetric A of matrices summed over the cells, (d, d): a Lyapunov equation in S's basis."""
    second, cross = moments.second.sum(0), moments.cross.sum(0)
    one = torch.eye(len(second), dtype=second.dtype, device=second.device)
    right = -(cross + cross.T + 2 * zeta * moments.weight.sum() * one)
    values, vectors = torch.linalg.eigh(second)
    inside = vectors.T @ right @ vectors / (values[:, None] + values)
    found: Tensor = vectors @ inside @ vectors.T
    return found


def objective(a: Tensor, moments: Moments, zeta: float) -> Tensor:
    """L at a diagonal A (cells, groups), or at a matrix (d, d) for matrix moments summed over the cells."""
    if moments.second.dim() == 2:
        return (0.5 * a**2 * moments.second + a * (moments.cross + moments.push(zeta))).sum()
    second, cross = moments.second.sum(0), moments.cross.sum(0)
    value: Tensor = 0.5 * (a @ second @ a.T).trace() + (a @ cross).trace() + zeta * moments.weight.sum() * a.trace()
    return value


def descend(a: Tensor, moments: Moments, zeta: float, *, steps: int, rate: float) -> Tensor:
    """`steps` steps of gradient descent on L from `a`, in units of the curvature: `rate` in (0, 1], 1 is Newton's step.

    For matrices the gradient is taken in the symmetric ones and the curvature is that of the largest variance.
    """
    for _ in range(steps):
        if moments.second.dim() == 2:
            gradient = a * moments.second + moments.cross + moments.push(zeta)
            a = a - rate * gradient / moments.second.clamp_min(torch.finfo(torch.float64).tiny)
        else:
            second, cross = moments.second.sum(0), moments.cross.sum(0)
            one = torch.eye(len(a), dtype=a.dtype, device=a.device)
            gradient = 0.5 * (a @ second + second @ a + cross + cross.T) + zeta * moments.weight.sum() * one
            a = a - rate * gradient / torch.linalg.matrix_norm(second, 2)
    return a


def gaussian(variance: Tensor, process: Linear, zeta: float) -> Tensor:
    """Where the alternation ends for Gaussian data: a (groups,), one A for all times, of coordinates of `variance`.

    At zeta = 1 the process ends in the prior, V_1 = alpha^2 variance + sigma^2 = 1, which is solved for D by bisection;
    else the alternation is followed (`alternation`). A variance below 0.01 is taken for 0.01: there a is near 0 at
    zeta = 1. `process` gives beta; its rates are not used.
    """
    variance = variance.clamp_min(_LEAST)
    if zeta != 1:
        return alternation(variance, process, zeta)
    b = process.integral(torch.ones_like(variance))
    low, high = torch.full_like(variance, -10.0), torch.full_like(variance, 100.0)
    for _ in range(60):
        rate = 0.5 * (low + high)
        above = variance * torch.exp(-rate * b) + share(rate, b) > 1  # which falls with the rate
        low, high = torch.where(above, rate, low), torch.where(above, high, rate)
    return 0.5 * (1 - 0.5 * (low + high))


def alternation(variance: Tensor, process: Linear, zeta: float, *, steps: int = 200, most: int = 500) -> Tensor:
    """The alternation from A = 0 on Gaussian data, at most `most` times or until a moves by less than 1e-8.

    No network and no samples: V_t = alpha^2 variance + sigma^2 has the score -z / V, the backward variance S solves
    dS/du = 2 beta (1/2 - a - 1/V) S + beta from S = 1 (Heun's method, `steps` steps even in time, which need a variance
    of 0.01 or more), and a <- integral of beta (S / V + a S - zeta) / integral of beta S.
    """
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=variance.device)
    b, beta, h = process.integral(t), process.beta(t), 1 / steps
    a = torch.zeros_like(variance)
    weights = trapezoid(t) * beta
    for _ in range(most):
        v = variance * torch.exp(-(1 - 2 * a) * b[:, None]) + share(1 - 2 * a, b[:, None].expand(-1, len(a)))
        slope = 2 * beta[:, None] * (0.5 - a - 1 / v)
        s = [torch.ones_like(a)]
        for k in range(steps):
            first = slope[k] * s[-1] + beta[k]
            s.append(s[-1] + 0.5 * h * (first + slope[k + 1] * (s[-1] + h * first) + beta[k + 1]))
        path = torch.stack(s)
        new = (weights @ (path / v + a * path - zeta)) / (weights @ path)
        moved = float((new - a).abs().max())
        a = new
        if moved < 1e-8:
            break
    return a
