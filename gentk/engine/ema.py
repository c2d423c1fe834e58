"""Exponential moving average of weights, counted in images."""

from __future__ import annotations

import math

import torch
from torch import nn

from gentk.recipe.schema import Ema


def decay(section: Ema, batch: int, images: int) -> float:
    """beta = 0.5^(batch / h), h = min(half_life, ramp_up * images): the average forgets its start (EDM, appendix F).

    `images` counts those seen including this batch.
    """
    half_life = float(section.half_life)
    if section.ramp_up is not None:
        half_life = min(half_life, section.ramp_up * images)
    return math.pow(0.5, batch / half_life)


@torch.no_grad()  # the average is no function of the weights that anything differentiates
def update(average: nn.Module, net: nn.Module, beta: float) -> None:
    """average <- beta * average + (1 - beta) * net for parameters; buffers are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1.0 - beta)
    for a, b in zip(average.buffers(), net.buffers(), strict=True):
        a.copy_(b)
