"""Data sets by name: whole in memory, bytes as on disk, the same split on every machine.

`mnist`, `fashion-mnist` and `cifar10` are read from files (see `fetch` for where they are looked for), `digits` ships
with scikit-learn, `images:FOLDER` reads a folder of pictures and `points:NAME` draws from a density of
`gentk.targets`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gentk import targets
from gentk.data import cifar10, digits, folder, idx, points
from gentk.data.arrays import Arrays, Split
from gentk.data.wide import POINTS
from gentk.errors import RecipeError, RunFailed, did_you_mean
from gentk.recipe.schema import Data

__all__ = ["DataSet", "Split", "load", "names", "to_uint8"]

_READERS: dict[str, Callable[[Data, Split], Arrays]] = {
    "digits": digits.read,
    "mnist": idx.read,
    "fashion-mnist": idx.read,
    "cifar10": cifar10.read,
    "points": points.read,
    "images": folder.read,
}
_WITH_ARGUMENT = {"points": "NAME", "images": "FOLDER"}


@dataclass(frozen=True, eq=False)
class DataSet:
    """One split of a data set: `x` uint8 (N, C, H, W) or float32 (N, 2), `y` int64 (N,) in [0, classes) or None."""

    name: str
    split: Split
    x: Tensor
    y: Tensor | None
    classes: int
    kind: Literal["image", "points"]

    def __len__(self) -> int:
        """The number of samples N."""
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (C, H, W), or (2,) for points."""
        return tuple(self.x.shape[1:])

    def batch(self, idx: Tensor) -> tuple[Tensor, Tensor | None]:
        """Samples `idx` (B,) as float32, images scaled to [-1, 1] by v / 127.5 - 1, and their labels."""
        x = self.x[idx].float()
        return (x / 127.5 - 1 if self.kind == "image" else x), (None if self.y is None else self.y[idx])


def load(section: Data, split: Split) -> DataSet:
    """One split of the data set that a recipe's `data:` section names.

    Raises RecipeError for an unknown name or a size that the images do not have, MissingAsset if the files are absent
    and RunFailed, naming the file, if they are damaged.
    """
    kind, colon, argument = section.name.partition(":")
    if kind not in _READERS or bool(argument) != (kind in _WITH_ARGUMENT) or (colon and not argument):
        known = names()
        raise RecipeError(
            f"unknown data set `{section.name}`{did_you_mean(section.name, known)}",
            hint=f"data sets: {', '.join(known)}",
        )
    x, y, classes = _READERS[kind](section, split)
    if len(x) == 0:
        raise RunFailed(f"data set `{section.name}` has no samples in its {split} split")
    if section.size is not None and x.shape[2:] != (section.size, section.size):
        have = "points" if x.ndim == 2 else f"{x.shape[3]} x {x.shape[2]} pixel images"
        raise RecipeError(f"`size: {section.size}` is asked for, but `{section.name}` holds {have}")
    return DataSet(section.name, split, x, y, classes, "points" if x.ndim == 2 else "image")


def names() -> tuple[str, ...]:
    """Every name that `load` knows, `images:FOLDER` standing for all folders."""
    fixed = tuple(name for name in _READERS if name not in _WITH_ARGUMENT)
    return (*fixed, *(f"points:{name}" for name in (*targets.names(), *POINTS)), "images:FOLDER")


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes by EDM's rule, floor of (127.5 x + 128) clipped to 0..255; inverts `DataSet.batch`.

    Raises RunFailed if `x` holds NaN, which a cast would turn into an arbitrary byte.
    """
    if x.isnan().any():
        raise RunFailed("the images hold NaN", hint="the network that made them has diverged")
    return (x.float() * 127.5 + 128).clip(0, 255).to(torch.uint8)
