"""Exponential moving average of weights, counted in images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gentk.engine import walk
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
    torch._foreach_lerp_(_own(average), _own(net), 1.0 - beta)
    for a, b in zip(walk.buffers(average), walk.buffers(net), strict=True):
        a.copy_(b)


def _own(net: nn.Module) -> list[Tensor]:
    """The parameters, or this process's part of each."""
    reshard: Any = getattr(net, "reshard", None)
    if reshard is None:
        return list(walk.parameters(net))
    reshard()
    found: list[Any] = walk.parameters(net)  # the type of parted ones takes a second to import
    return [p.to_local() for p in found]
