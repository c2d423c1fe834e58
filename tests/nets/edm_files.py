"""Pickles in NVlabs' layout, made without their code; the Python source inside them would end the process."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

BOMB = "import os\nos._exit(86)\n"


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("the official way of loading, which runs the file's source")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@contextmanager
def official_modules() -> Iterator[None]:
    """The modules whose names the pickle needs while it is written."""
    package, module = ModuleType("torch_utils"), ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    sys.modules |= {"torch_utils": package, "torch_utils.persistence": module}
    try:
        yield
    finally:
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]


class Persistent:
    """An object of a class with NVlabs' `persistent_class`, as it is pickled."""

    def __init__(self, class_name: str, state: Any, **changes: Any) -> None:
        meta = {"type": "class", "version": 6, "module_src": BOMB, "class_name": class_name, "state": state}
        self.meta = meta | changes

    def __reduce__(self) -> Any:
        return _reconstruct_persistent_obj, (self.meta,)


def _module(state: dict[str, Tensor], prefix: str, class_name: str, **attributes: Any) -> Any:
    """The object of the module at `prefix`; `enc` and `dec` are torch's ModuleDict, as in the official networks."""
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    children = dict.fromkeys(name.split(".")[0] for name in own if "." in name)
    inner = {name: _module(state, f"{prefix}{name}.", f"{name.capitalize()}Layer") for name in children}
    here = {name: tensor for name, tensor in own.items() if "." not in name}
    buffers = {name: tensor for name, tensor in here.items() if name in ("freqs", "resample_filter")}
    parameters: dict[str, Any] = {k: nn.Parameter(v) for k, v in here.items() if k not in buffers}
    if class_name in ("EncLayer", "DecLayer"):
        container = nn.ModuleDict()
        container._modules.update(inner)
        return container
    fields = {
        "training": False,
        "_parameters": {"absent": None, **parameters},
        "_buffers": {**buffers, "scratch": torch.ones(1)},
        "_non_persistent_buffers_set": {"scratch"},
        "_modules": {"nothing": None, **inner},
        "_init_args": (),
        "_init_kwargs": {},
    }
    return Persistent(class_name, fields | attributes)


def network(
    state: dict[str, Tensor], class_name: str = "EDMPrecond", kwargs: dict[str, Any] | None = None, **attributes: Any
) -> Any:
    """The preconditioned network with the tensors of `state` (names `model....`) as the official code pickles it."""
    return _module(state, "", class_name, _init_kwargs=kwargs or {}, **attributes)


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    """Pickles `content` to `path`."""
    with official_modules():
        path.write_bytes(pickle.dumps(content, protocol))
    return path
