"""Restorers: images from measurements y = H x + sigma eps and a denoiser as prior. One method per file, each a pure

    restore(denoise, op, y, sigma, x, levels, noise, **own) -> images (B, *shape)

denoise   (x0 + s eps (B, *shape), s) -> E[x0]; without a label
op        H (`gentk.operators`), for this batch
y, sigma  measurements (B, *measured), 0 where nothing is measured, and the deviation of their noise
x         levels[0] times standard normal noise (B, *shape)
levels    noise levels s from noisy to clean, the last one 0
noise     noise(x) -> standard normal of x's shape, new at every call

All work in variance-exploding coordinates, x_s = x0 + s eps. No row of a batch depends on another: norms are per image
(over the whole batch, as in published code, a step would shrink with the batch).

`POSTERIOR` in each file says what its draws are: "exact" but for the steps' size, "approximate", or "point": one
estimate whose spread is no uncertainty. A file whose method walks only a part of the levels has `levels_of`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[Tensor], Tensor]
Levels = Sequence[float]


def ancestral(x: Tensor, x0: Tensor, s: float, u: float, noise: Noise) -> Tensor:
    """A draw of x_u given x_s and x0 (DDPM's posterior), u < s: x0 itself at u = 0."""
    if u == 0:
        return x0
    kept = (u / s) ** 2
    return kept * x + (1 - kept) * x0 + u * math.sqrt(1 - kept) * noise(x)


def renoised(x: Tensor, mean: Tensor, x0: Tensor, s: float, u: float, new: float, noise: Noise) -> Tensor:
    """`mean` at level u: of its noise the part sqrt(1 - new^2) is (x - x0) / s, and the part `new` fresh."""
    if u == 0:
        return mean
    old = mean + u * math.sqrt(1 - new**2) / s * (x - x0)
    return old + u * new * noise(x) if new else old
