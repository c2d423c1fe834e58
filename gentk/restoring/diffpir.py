"""Plug-and-play restoration (Zhu et al. 2023, DiffPIR, arXiv:2305.08995): D, a proximal step to the data, new noise."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from gentk.operators import Operator, regularised
from gentk.restoring import Denoise, Levels, Noise, renoised

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
    weight: float = 7.0,
    zeta: float = 0.3,
) -> Tensor:
    """x0 <- argmin |y - H x0|^2 / sigma^2 + (weight / s^2) |x0 - D|^2, then to the next level.

    The paper's lambda and zeta: the share zeta of the variance of the noise there is fresh, the rest points from x0 to
    x.
    """
    for s, u in pairwise(levels):
        x0 = denoise(x, s)
        x0 = x0 + regularised(op, y - op(x0), s / math.sqrt(weight), sigma)
        x = renoised(x, x0, x0, s, u, math.sqrt(zeta), noise)
    return x
