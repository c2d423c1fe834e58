"""A Gaussian prior, its exact denoiser and posterior, and the exact law of a restorer that is affine in its noise."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor

from gentk.operators import Operator
from gentk.restoring import Denoise

S = torch.tensor([[1.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
BLUR = torch.tensor([[1.0, 0.4], [0.4, 1.0]], dtype=torch.float64)
FIRST = torch.tensor([[1.0, 0.0]], dtype=torch.float64)


def karras(n: int, low: float = 0.002, high: float = 40.0) -> list[float]:
    """rho 7, the notes' grid."""
    ramp = torch.linspace(high ** (1 / 7), low ** (1 / 7), n, dtype=torch.float64) ** 7
    return [*ramp.tolist(), 0.0]


def denoiser(s: Tensor = S) -> Denoise:
    """E[x0 | x] of N(0, s)."""

    def denoise(x: Tensor, level: float) -> Tensor:
        gain = s @ torch.linalg.inv(s + level**2 * torch.eye(len(s), dtype=s.dtype))
        return (x.flatten(1) @ gain.to(x).T).reshape(x.shape)

    return denoise


def posterior(h: Tensor, y: Tensor, sigma: float, s: Tensor = S) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x given y = h x + sigma eps."""
    k = s @ h.T @ torch.linalg.inv(h @ s @ h.T + sigma**2 * torch.eye(len(h), dtype=s.dtype))
    return k @ y, s - k @ h @ s


def law(restore: Callable[..., Tensor], op: Operator, y: Tensor, sigma: float, levels: list[float], **own: Any) -> Any:
    """Mean (D,) and covariance (D, D) of what comes out, without a random number.

    The result is affine in the start and in every noise: each gets a row of the batch with a one in one place. Whatever
    is not affine (DPS) would show in the control row, where all of them add up.
    """
    d, steps = op.shape[0], len(levels) - 1
    rows = 1 + d + d * steps
    start = torch.zeros(rows, d, dtype=torch.float64)
    start[1 : 1 + d] = torch.eye(d, dtype=torch.float64)
    calls = count()

    def noise(x: Tensor) -> Tensor:
        out, at = torch.zeros_like(x), 1 + d + d * next(calls)
        out[at : at + d] = torch.eye(d, dtype=x.dtype)
        return out

    out = restore(own.pop("denoise", denoiser()), op, y.expand(rows, -1), sigma, start, levels, noise, **own)
    mean = out[0]
    first, rest = out[1 : 1 + d] - mean, out[1 + d :] - mean
    return mean, levels[0] ** 2 * first.T @ first + rest.T @ rest
