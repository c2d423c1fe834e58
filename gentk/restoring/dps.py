"""Diffusion posterior sampling (Chung et al. 2023, arXiv:2209.14687): ancestral steps, each pulled towards y."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from gentk.operators import Operator
from gentk.restoring import Denoise, Levels, Noise, ancestral

POSTERIOR = "point"

Units = Literal["vp", "ve"]


def restore(
    denoise: Denoise,
    op: Operator,
    y: Tensor,
    sigma: float,
    x: Tensor,
    levels: Levels,
    noise: Noise,
    *,
    scale: float = 0.3,
    units: Units = "vp",
) -> Tensor:
    """After each ancestral step x_u, the paper's x_u <- x_u - scale grad_x |y - H D(x_s)|, a norm and not its square.

    `units`: the coordinates that the step is counted in; the paper's scales are of `vp`, where x is scaled to
    variance 1: there x_u = x_u / sqrt(1 + u^2), and in ours the step is sqrt(1 + s^2) sqrt(1 + u^2) as long. `sigma` is
    not used: on a known posterior the result fits the noise, whatever sigma is.
    """
    for s, u in pairwise(levels):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0 = denoise(x, s)
            misfit = (y - op(x0)).flatten(1).norm(dim=1)
            (pull,) = torch.autograd.grad(misfit.sum(), x)
        length = scale * (math.sqrt((1 + s**2) * (1 + u**2)) if units == "vp" else 1.0)
        x = ancestral(x.detach(), x0.detach(), s, u, noise) - length * pull
    return x
