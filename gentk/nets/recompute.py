"""Activation checkpointing: blocks whose inner activations are computed again in the backward pass, not kept.

The gradients are the very same, dropout included (its random numbers are kept); memory falls from all activations to
the inputs of the blocks plus one block's inside, for about one more forward pass (Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gentk.nets import blocks, ddpm, unet
from gentk.nets.lora import Adapted

_BLOCKS = (unet.Block, blocks.Block, ddpm.Resnet, ddpm.Attention)


def recompute(net: nn.Module) -> int:
    """Turns it on in every block of `net`, for good and for later copies; the number of blocks that have it now.

    Networks of diffusers bring their own switch, which is used; it counts as one block. 0: there is nothing to switch.
    """
    found = 0
    for module in _outermost(net):
        if isinstance(module, _BLOCKS):
            module.forward = partial(_again, module)  # type: ignore[method-assign]
        else:
            module.enable_gradient_checkpointing()  # type: ignore[operator]
        found += 1
    return found


def _outermost(net: nn.Module) -> Iterator[nn.Module]:
    """The modules that can be switched, none of them inside another."""
    if isinstance(net, Adapted):
        yield from _outermost(net.body)
    elif isinstance(net, _BLOCKS) or hasattr(net, "enable_gradient_checkpointing"):
        yield net
    else:
        for child in net.children():
            yield from _outermost(child)


def _again(module: nn.Module, *args: Any) -> Any:
    """The forward of a block that keeps its inputs alone, where there will be a backward pass."""
    forward = partial(type(module).forward, module)
    return checkpoint(forward, *args, use_reentrant=False) if torch.is_grad_enabled() else forward(*args)
