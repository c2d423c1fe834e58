"""Pseudo-inverse guidance (Song et al. 2023, PiGDM), isotropic or with the denoiser's own covariance (MMPS).

The score of y given x_s is that of a Gaussian: x0 given x_s is taken for N(D, C). Then

    D_y = D + C H^T (H C H^T + sigma^2)^-1 (y - H D)

is the denoiser given y. With C = Cov(x0 | x_s) = s^2 J, J the Jacobian of D (Tweedie), it is exact for a Gaussian prior
(Rozet et al. 2024, arXiv:2405.13712). Isotropic, the middle C is r^2 and the outer one s^2 J^T, as in the paper: as if
pixels were independent given x_s. Where many pixels move as one it overshoots by about their number, without bound.

The published algorithm multiplies this guidance by r^2 ("adaptive weight") and adds it to the sample apart from the
step; `weight` follows it. In its variance-preserving coordinates it is sqrt(alpha_u alpha_s) times the gradient in x_s
of <D, r^2 H^T (r^2 H H^T + sigma^2)^-1 (y - H D)>, the bracket's second half held fixed: in ours, J^T of that half. So
it stands in the code of the method's authors for sigma = 0 (NVlabs/RED-diff, algos/pgdm.py, awd), and in two others'
(probabilists/azula, guidance/pgdm.py; PiGDM of InverseBench, with noise).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from gentk.operators import Operator, regularised
from gentk.restoring import Denoise, Levels, Noise, ancestral

POSTERIOR = "approximate"

Weight = Literal["adaptive", "score"]


def restore(
    denoise: Denoise,
    op: Operator,
    y: Tensor,
    sigma: float,
    x: Tensor,
    levels: Levels,
    noise: Noise,
    *,
    covariance: bool = False,
    sigma_data: float = 0.5,
    weight: Weight = "adaptive",
    solves: int = 5,
) -> Tensor:
    """Ancestral sampling by D_y.

    `covariance`: C = s^2 J, by `solves` steps of conjugate gradients (as many as y has numbers are exact), with one
    backward pass each; no singular values needed, but sigma > 0. Else r^2 = s^2 sd^2 / (s^2 + sd^2), the variance given
    x_s of data of variance sd^2 (`sigma_data`), and one backward pass; `weight`: `score` is D_y, `adaptive` the
    published algorithm, which adds r^2 times the guidance to x_u.
    """
    for s, u in pairwise(levels):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = denoise(x, s)

            def spread(v: Tensor, s: float = s, x: Tensor = x, x0: Tensor = x0) -> Tensor:
                """s^2 J^T v."""
                (back,) = torch.autograd.grad(x0, x, v, retain_graph=True)
                return s**2 * back

            gap = (y - op(x0)).detach()
            if covariance:
                w = op.adjoint(_solved(op, spread, sigma, gap, solves))
            else:
                r = (s**2 * sigma_data**2 / (s**2 + sigma_data**2)) ** 0.5
                w = regularised(op, gap, r, sigma) / r**2
            pull, x0 = spread(w), x0.detach()
        if covariance or weight == "score":
            x = ancestral(x.detach(), x0 + pull, s, u, noise)
        else:
            x = ancestral(x.detach(), x0, s, u, noise) + r**2 / s**2 * pull
    return x


def _solved(op: Operator, spread: Noise, sigma: float, gap: Tensor, steps: int) -> Tensor:
    """w of (H C H^T + sigma^2) w = gap by conjugate gradients, each row by itself.

    A row stops where it is done, or where a direction has no positive curvature: a network's J need not be symmetric.
    """
    w, rest = torch.zeros_like(gap), gap
    way, size = rest, _dot(rest, rest)
    first = size
    for _ in range(steps):
        image = op(spread(op.adjoint(way))) + sigma**2 * way
        curvature = _dot(way, image)
        on = (curvature > 0) & (size > 1e-14 * first)
        far = torch.where(on, size / torch.where(on, curvature, torch.ones_like(curvature)), 0.0)
        w = w + far * way
        rest = rest - far * image
        fresh = _dot(rest, rest)
        way = torch.where(on, rest + fresh / torch.where(on, size, torch.ones_like(size)) * way, 0.0)
        size = torch.where(on, fresh, 0.0)
    return w


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B, ...) twice -> (B, 1, ...), to multiply them."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.dim() - 1))
