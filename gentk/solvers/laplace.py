"""Laplace's approximation of a density with one mode: N(mode, H^-1), H the Hessian of -log_prob there.

Newton's method with halved steps. Its affine map y -> mode + L y, L L^T = H^-1, makes a posterior look like N(0, I).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gentk.errors import RecipeError, RunFailed
from gentk.solvers.chains import LogProb

_LARGEST = 1000  # dimensions: the Hessian is dense, and a backward pass for each


class Laplace(NamedTuple):
    """`mode` (D,) and `root` (D, D), lower triangular, root root^T the inverse Hessian; float64."""

    mode: Tensor
    root: Tensor


def fit(log_prob: LogProb, start: Tensor, *, steps: int = 100, tolerance: float = 1e-8) -> Laplace:
    """From `start` (D,) in float64. Raises RunFailed where there is no mode to be found.

    Ends when Newton's decrement, twice the expected gain in log_prob, is below `tolerance`.
    """
    x = start.double()
    d = len(x)
    if d > _LARGEST:
        raise RecipeError(f"whitening by Laplace: {d} dimensions are more than {_LARGEST}", hint="whiten: none")
    for _ in range(steps):
        value, grad, hessian = _derivatives(log_prob, x)
        # Away from the mode the Hessian may be indefinite: its eigenvalues are taken by size.
        values, vectors = torch.linalg.eigh(hessian)
        floor = 1e-10 * float(values.abs().max().clamp(min=1e-300))
        step = vectors @ ((vectors.T @ grad) / values.abs().clamp(min=floor))
        decrement = float(grad @ step)
        if not decrement >= 0:
            break
        if decrement < tolerance:
            if float(values[0]) <= floor:
                raise RunFailed(
                    "Laplace's approximation: the density is flat or grows at its stationary point: no mode",
                    hint="--set method.whiten=none, or give a proper prior",
                )
            root = torch.linalg.cholesky(vectors @ (vectors / values).T)
            return Laplace(x, root)
        scale = 1.0
        while scale > 1e-10 and not _value(log_prob, x + scale * step) >= value + 1e-4 * scale * decrement:
            scale /= 2
        x = x + scale * step
    raise RunFailed(
        f"Laplace's approximation: no mode found in {steps} steps of Newton's method",
        hint="--set method.whiten=none, or check that the density has a maximum",
    )


def _value(log_prob: LogProb, x: Tensor) -> float:
    with torch.no_grad():
        return float(log_prob(x[None])[0])


def _derivatives(log_prob: LogProb, x: Tensor) -> tuple[float, Tensor, Tensor]:
    """log_prob, its gradient, and the Hessian of -log_prob at x (D,): all D second derivatives in one batch."""
    d = len(x)
    with torch.enable_grad():
        rows = x.detach().expand(d, d).clone().requires_grad_()  # D copies: each gives its own row of the Hessian
        value = log_prob(rows)
        (grad,) = torch.autograd.grad(value.sum(), rows, create_graph=True)
        (second,) = torch.autograd.grad(grad.diagonal().sum(), rows)
    return float(value[0].detach()), grad[0].detach(), -(second + second.T) / 2
