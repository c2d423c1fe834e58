"""Weights on disk: safetensors with a header that says what the tensors are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from gentk.errors import GentkError, RunFailed
from gentk.recipe.stamp import write_header


def save(path: Path, net: nn.Module, header: dict[str, Any]) -> None:
    """Writes the state of `net` with `header` to `path`, whole or not at all.

    Raises RunFailed when the disk refuses.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(safetensors.torch.save(state, write_header(header)))
        temporary.replace(path)
    except OSError as e:
        with suppress(OSError):  # what refused the file may refuse this too: the first reason is the one to tell
            temporary.unlink()
        raise RunFailed(
            f"{path}: cannot be written: {e.strerror}", hint="free disk space or choose another --out"
        ) from e


def load_into(net: nn.Module, path: Path) -> None:
    """Fills `net` with the tensors of `path`.

    Raises GentkError naming the missing, unexpected and misshapen tensors when the file holds another architecture.
    """
    try:
        state = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as e:
        raise GentkError(f"{path}: cannot be read: {e}", hint="fetch or export it again") from e
    if found := faults(net.state_dict(), state):
        raise GentkError(f"{path}: holds another architecture than its header says: {found}")
    net.load_state_dict(state)


def faults(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What keeps `state` from filling a network of the state `own`: the first four faults, or the empty string."""
    found = [f"missing {k}" for k in own if k not in state] + [f"unexpected {k}" for k in state if k not in own]
    found += [
        f"{k} has shape {tuple(state[k].shape)}, expected {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    return "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")
