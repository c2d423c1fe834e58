"""Linear processes whose matrix keeps its eigenvectors: exact scalar kernels in as many coordinates as there are.

    dx = -beta D x / 2 dt + sqrt(beta) dW,     D = I - 2 A = Q diag(D_i) Q^T,     z = Q^T x

    symbol      meaning
    b           integral of beta from 0 to t: beta_min t + (beta_max - beta_min) t^(power + 1) / (power + 1)
    alpha_i     exp(-D_i b / 2) and
    sigma_i     sqrt((1 - exp(-D_i b)) / D_i), which is sqrt(b) at D_i = 0: z_i | z_i(0) ~ N(alpha_i z_i(0), sigma_i^2)
    cell        part of [0, 1] in which the D_i are constant; kernels of several cells are composed, which is exact
    group       coordinates with one D_i: alone, or the rest of a low-rank D (its `counts` says how many)

A = 0 is the variance-preserving process, whatever Q. A negative D_i is legal: that coordinate's noise grows.
`Linear` is also a `Process` of scalars, the geometric means over the coordinates, by which noise levels are named,
grids are made and times are drawn. Its matrix is kept by `gentk.processes.linear_denoiser`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from gentk.recipe.linear import Betas

_SMALLEST = 1e-9  # time below which ln s is taken for ln sqrt(beta_min t)


def share(rate: Tensor, b: Tensor) -> Tensor:
    """(1 - exp(-rate b)) / rate, elementwise, b at rate 0: the variance that a coordinate gathers."""
    flat = rate.abs() < 1e-12
    return torch.where(flat, b, -torch.expm1(-rate * b) / torch.where(flat, 1.0, rate))


@dataclass(frozen=True, eq=False)
class Linear:
    """The process of the groups' rates D_i, float64 (cells, groups), and `counts` (groups,) coordinates each."""

    betas: Betas
    rates: Tensor
    counts: Tensor
    name: ClassVar[str] = "linear"

    @property
    def t_min(self) -> float:
        """Smallest time in use."""
        return self.betas.t_min

    @property
    def t_max(self) -> float:
        """1."""
        return 1.0

    def beta(self, t: Tensor) -> Tensor:
        """beta at t."""
        low, high = self.betas.beta_min, self.betas.beta_max
        return low + (high - low) * t**self.betas.power

    def integral(self, t: Tensor) -> Tensor:
        """b, the integral of beta from 0 to t."""
        low, high, p = self.betas.beta_min, self.betas.beta_max, self.betas.power + 1
        return low * t + (high - low) / p * t**p

    def cell(self, t: Tensor) -> Tensor:
        """Index of the cell that holds t, the last one beyond 1; int64 of t's shape."""
        return (t * len(self.rates)).long().clamp(0, len(self.rates) - 1)

    @cached_property
    def _starts(self) -> tuple[Tensor, Tensor, Tensor]:
        """b (cells,), alpha and sigma^2 (cells, groups) at the beginning of each cell."""
        n = len(self.rates)
        b = self.integral(torch.arange(n + 1, dtype=torch.float64, device=self.rates.device) / n)
        alpha, var = [torch.ones_like(self.rates[0])], [torch.zeros_like(self.rates[0])]
        for rate, step in zip(self.rates[:-1], b.diff()[:-1], strict=True):
            alpha.append(alpha[-1] * torch.exp(-0.5 * rate * step))
            var.append(var[-1] * torch.exp(-rate * step) + share(rate, step))
        return b[:-1], torch.stack(alpha), torch.stack(var)

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """D_i, alpha_i and sigma_i^2 at t: each (*t, groups)."""
        t = t.double().to(self.rates.device)
        b0, alpha, var = self._starts
        k = self.cell(t)
        rate, b = self.rates[k], (self.integral(t) - b0[k])[..., None]
        return rate, alpha[k] * torch.exp(-0.5 * rate * b), var[k] * torch.exp(-rate * b) + share(rate, b)

    def alphas(self, t: Tensor) -> Tensor:
        """alpha_i at t, float64 (*t, groups)."""
        return self._at(t)[1]

    def sigmas(self, t: Tensor) -> Tensor:
        """sigma_i at t, float64 (*t, groups)."""
        return self._at(t)[2].sqrt()

    def d_alphas(self, t: Tensor) -> Tensor:
        """d alpha_i / dt = -beta D_i alpha_i / 2."""
        rate, alpha, _ = self._at(t)
        return -0.5 * self.beta(t.double())[..., None].to(alpha) * rate * alpha

    def d_sigmas(self, t: Tensor) -> Tensor:
        """d sigma_i / dt = beta (1 - D_i sigma_i^2) / (2 sigma_i); inf at t = 0."""
        rate, _, var = self._at(t)
        return 0.5 * self.beta(t.double())[..., None].to(var) * (1 - rate * var) / var.sqrt()

    def _mean(self, x: Tensor) -> Tensor:
        return x @ (self.counts / self.counts.sum()).to(x)

    def alpha(self, t: Tensor) -> Tensor:
        """The geometric mean of alpha_i."""
        return torch.exp(self._mean(self._at(t)[1].log())).to(t)

    def sigma(self, t: Tensor) -> Tensor:
        """The geometric mean of sigma_i."""
        return torch.exp(0.5 * self._mean(self._at(t)[2].log())).to(t)

    def d_alpha(self, t: Tensor) -> Tensor:
        """Its derivative, that of ln alpha_i being -beta D_i / 2."""
        rate, _, _ = self._at(t)
        return -0.5 * self.beta(t) * self._mean(rate).to(t) * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Its derivative; inf at t = 0."""
        rate, _, var = self._at(t)
        return 0.5 * self.beta(t) * self._mean((1 - rate * var) / var).to(t) * self.sigma(t)

    def log_ratio(self, t: Tensor) -> Tensor:
        """ln of the geometric mean of sigma_i / alpha_i: float64, -inf at t = 0; it grows with t for any D."""
        _, alpha, var = self._at(t)
        return self._mean(0.5 * var.log() - alpha.log())

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        t = torch.logspace(-9, 0, 1000, dtype=torch.float64, device=self.rates.device)
        return t.log(), self.log_ratio(t)

    def t_of(self, ratio: Tensor) -> Tensor:
        """The time at which sigma / alpha equals `ratio` >= 0, by Newton's method in ln t on ln s, d ln s / d ln t > 0.

        A table's interpolation is where it begins. A ratio above that of t = 1 gives a time above 1.
        """
        wanted = ratio.double().to(self.rates.device).log()
        logs, values = self._table
        k = torch.searchsorted(values, wanted.contiguous()).clamp(1, len(logs) - 1)
        slope = (logs[k] - logs[k - 1]) / (values[k] - values[k - 1])
        log = logs[k - 1] + slope * (wanted.clamp_min(values[0]) - values[k - 1])
        for _ in range(6):
            t = log.exp()
            growth = 0.5 * self.beta(t) * t * self._mean(1 / self._at(t)[2])  # s^2' = beta / alpha^2 in each coordinate
            log = log - ((self.log_ratio(t) - wanted) / growth).clamp(-1, 1)
        below = ratio.double().to(log).square() / self.betas.beta_min  # s = sqrt(beta_min t) where beta is beta_min
        return torch.where(wanted < values[0], below.clamp_max(_SMALLEST), log.exp()).to(ratio)
