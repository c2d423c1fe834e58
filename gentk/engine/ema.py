"""Exponential moving average of weights, counted in images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

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
    """average <- beta * average + (1 - beta) * net for parameters; buffers are copied.

    Of networks in parts (`engine/shards.py`) each process moves its own.
    """
    for module in (average, net):
        reshard: Any = getattr(module, "reshard", None)
        if reshard is not None:
            reshard()
    torch._foreach_lerp_([_own(p) for p in average.parameters()], [_own(p) for p in net.parameters()], 1.0 - beta)
    for a, b in zip(average.buffers(), net.buffers(), strict=True):
        a.copy_(b)


def _own(p: Tensor) -> Tensor:
    to_local: Any = getattr(p.detach(), "to_local", None)  # the type itself takes a second to import
    own: Tensor = p if to_local is None else to_local()
    return own
