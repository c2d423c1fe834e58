"""Where the numbers live: the device, the precision of the losses, compilation, and what is kept for backward."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from gentk.engine import allocations
from gentk.errors import RecipeError
from gentk.nets.recompute import recompute


def device(name: str) -> torch.device:
    """The torch device of `--device auto|cpu|cuda`. Raises RecipeError when CUDA is asked for and absent.

    On CUDA, fp32 means fp32: TF32 is turned off, as in EDM, SiD and Diff-Instruct, and cuDNN takes deterministic
    kernels, so that a resumed run can repeat an uninterrupted one.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            "--device cuda: no CUDA device is visible to torch", hint="gentk doctor shows why; or --device cpu"
        )
    return torch.device(name)


def autocast(where: torch.device, precision: str) -> AbstractContextManager[object]:
    """bf16 autocast, or nothing for fp32. Parameters, gradients and optimiser states stay float32 in both."""
    if precision == "bf16":
        return torch.autocast(where.type, dtype=torch.bfloat16)
    return nullcontext()


def exact(where: torch.device) -> AbstractContextManager[object]:
    """No autocast in the block, whatever the loop has: what is computed there must not be rounded."""
    return allocations.exact() if where.type == "meta" else torch.autocast(where.type, enabled=False)


def compiled(nets: Mapping[str, nn.Module]) -> None:
    """torch.compile of each network's forward, in place: state-dict keys and the modules' identity stay."""
    for net in nets.values():
        net.compile()


def saving(nets: Mapping[str, nn.Module]) -> None:
    """Activation checkpointing in every network that has blocks. Raises RecipeError where none has."""
    if not sum(recompute(net) for net in nets.values()):
        raise RecipeError(
            "train.checkpointing: none of the networks has blocks whose activations could be computed again",
            hint="leave it out",
        )
