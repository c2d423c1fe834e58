"""A noising process and every change of variables that belongs to it.

    x_t = alpha(t) x0 + sigma(t) eps,    eps ~ N(0, I),    t grows with noise

    symbol       meaning
    alpha, sigma signal and noise scale; sigma / alpha = s is the noise-to-signal ratio, EDM's sigma
    x0           clean sample, or its estimate D = E[x0 | x_t]
    kind         what a network may predict instead of x0: any p x0 + q eps

Given x_t, each kind is an affine function of x0 and back, so one table of (p, q) holds all conversions:

    eps = (x_t - alpha x0) / sigma        out = p x0 + q eps        x0 = (q x_t - sigma out) / (q alpha - p sigma)

At the ends some of them do not exist: `eps` and `score` say nothing about x0 where alpha = 0, and nothing but `x0`
can be had from x0 where sigma = 0. The functions return inf or nan there, as the arithmetic does.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

Kind = Literal["x0", "eps", "v", "flow", "reverse-eps", "reverse-flow", "score", "velocity"]


class Process(Protocol):
    """alpha and sigma as functions of time, elementwise in t and in t's dtype; exact to rounding.

    `t_min`, `t_max` are the ends of the times in use; `t_of` inverts t -> sigma(t) / alpha(t) for any ratio >= 0.
    """

    @property
    def name(self) -> str:
        """The process's name in recipes."""
        ...

    @property
    def t_min(self) -> float:
        """Smallest time in use, > 0."""
        ...

    @property
    def t_max(self) -> float:
        """Largest time in use."""
        ...

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale, alpha(0) = 1."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale, sigma(0) = 0."""
        ...

    def d_alpha(self, t: Tensor) -> Tensor:
        """d alpha / dt."""
        ...

    def d_sigma(self, t: Tensor) -> Tensor:
        """d sigma / dt."""
        ...

    def t_of(self, ratio: Tensor) -> Tensor:
        """The time at which sigma / alpha equals `ratio` >= 0."""
        ...


def ratio(process: Process, t: Tensor) -> Tensor:
    """Noise-to-signal ratio s = sigma / alpha at t; inf where alpha = 0."""
    return process.sigma(t) / process.alpha(t)


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Scalars per sample, () or (B,), in x's dtype and shaped to multiply x of shape (B, ...)."""
    return t.reshape(t.shape + (1,) * (x.dim() - t.dim())).to(x)


def diffuse(process: Process, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """x_t = alpha x0 + sigma eps: x0, eps (B, ...), t () or (B,) -> (B, ...)."""
    t = t.double()
    return expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps


def _row(kind: Kind, process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """(p, q) of `out = p x0 + q eps`."""
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    match kind:
        case "x0":
            return one, zero
        case "eps":
            return zero, one
        case "v":  # Salimans & Ho 2022 (arXiv:2202.00512), section 4
            return -process.sigma(t), process.alpha(t)
        case "flow":  # noise minus data: the velocity of the straight path (Liu et al. 2022, arXiv:2209.03003)
            return -one, one
        case "reverse-eps":  # score times sigma: score_sde's variance-exploding nets (arXiv:2011.13456)
            return zero, -one
        case "reverse-flow":  # data minus noise: where time runs from noise to data, as in Liu et al.'s own code
            return one, -one
        case "score":  # grad log p_t(x_t) = -E[eps | x_t] / sigma (Tweedie)
            return zero, -1 / process.sigma(t)
        case "velocity":  # dx/dt of the probability-flow ODE (Song et al. 2021, arXiv:2011.13456, eq. 13)
            return process.d_alpha(t), process.d_sigma(t)
    raise ValueError(f"unknown kind of prediction {kind!r}")


def x0_from(kind: Kind, process: Process, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
    """The clean sample that the prediction `out` of `kind` stands for: x, out (B, ...), t () or (B,) -> (B, ...).

    Coefficients are computed in float64, the result has x's dtype. Division by zero where alpha = 0 for `eps`, `score`.
    """
    if kind == "x0":
        return out.to(x.dtype)
    t = t.double()
    sigma = process.sigma(t)
    p, q = _row(kind, process, t)
    det = q * process.alpha(t) - p * sigma
    return expand(q / det, x) * x - expand(sigma / det, x) * out


def from_x0(kind: Kind, process: Process, x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
    """The prediction of `kind` that means `x0`, the inverse of `x0_from`; division by zero where sigma = 0."""
    if kind == "x0":
        return x0.to(x.dtype)
    t = t.double()
    p, q = _row(kind, process, t)
    q = q / process.sigma(t)
    return expand(p - q * process.alpha(t), x) * x0 + expand(q, x) * x
