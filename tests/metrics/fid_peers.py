"""What the tests of the image protocols share: random weights in the published format, images, the field's packages."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gentk.metrics import registry
from gentk.nets.inception import Inception
from gentk.recipe.weights import digest


def write_weights(path: Path) -> Path:
    """Random weights in the format of the published Inception file: no batch norm is the identity."""
    torch.manual_seed(0)
    state = Inception().state_dict()
    generator = torch.Generator().manual_seed(1)
    for name, value in state.items():
        if name.endswith(("bn.weight", "bn.running_var")):
            value.uniform_(0.7, 1.4, generator=generator)
        elif name.endswith(("bn.bias", "bn.running_mean")):
            value.normal_(0, 0.2, generator=generator)
    torch.save(state, path)
    return path


def admit(monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> None:
    """Lets the registry take `path` for its row `name`, whose checksum only the published file has."""
    row = dataclasses.replace(getattr(registry, name), sha256=digest(path))
    monkeypatch.setattr(registry, name, row)


def images(n: int) -> Tensor:
    """n images as (n, 3, 32, 32) bytes: CIFAR-10's from $GENTK_DATA, noise where there are none."""
    sheet = Path(os.environ.get("GENTK_DATA", "")) / "cifar10" / "test_batch.webp"
    if not sheet.is_file():
        return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tiles = np.asarray(Image.open(sheet)).reshape(100, 32, 100, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    return torch.from_numpy(tiles[:n].copy()).permute(0, 3, 1, 2).contiguous()


def peer(module: str) -> ModuleType:
    """Another package's module; skips the test where the package is not installed.

    All of them import torchvision, and none needs it for what is compared here: where there is none that fits the
    installed torch, an empty one stands in for the import.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        pytest.skip(f"{module.partition('.')[0]} is not installed")
    with warnings.catch_warnings():  # theirs are not ours to mend; clean-fid switches all off for good
        warnings.simplefilter("ignore")
        if torchvision_fits():
            return importlib.import_module(module)
        with _hollow_torchvision():
            return importlib.import_module(module)


def torchvision_fits() -> bool:
    """Whether torchvision can be imported, on a CPU torch also from a CUDA build, whose operators are of no use."""
    if "torchvision" in sys.modules:
        return True
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return False
    except RuntimeError:  # its compiled operators did not load; all that its import needs is this one's name
        torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        importlib.import_module("torchvision")
    return True


class _Nothing(type):
    """A class whose every attribute is another such class: what is imported from nowhere can be named, not used."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})


class _Hollow(ModuleType):
    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Hollow(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def _hollow_torchvision() -> Iterator[None]:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
