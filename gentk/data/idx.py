"""MNIST and Fashion-MNIST in their original IDX files, plain or gzipped: 60000 + 10000 grey images of 28 x 28 pixels.

Sources: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998, where the IDX format is described;
Xiao, Rasul and Vollgraf, "Fashion-MNIST", arXiv:1708.07747.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gentk.data.arrays import Arrays, Split, labelled
from gentk.data.fetch import locate
from gentk.errors import RunFailed
from gentk.recipe.schema import Data

_FOLDERS = {
    "mnist": ("mnist", "MNIST/raw"),
    "fashion-mnist": ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
}
_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTE = 0x08


def read(section: Data, split: Split) -> Arrays:
    """x (N, 1, 28, 28) and labels 0..9 of `mnist` or `fashion-mnist`.

    The files lie in a folder of the set's name in the root, in torchvision's layout there, or in `data.root` itself.
    Both sets use the same file names, so the last counts only where the recipe gives the root for this one set.
    Raises MissingAsset, or RunFailed for a damaged file.
    """
    places = (*_FOLDERS[section.name], *([""] if section.root else []))
    files = (f"{_PREFIX[split]}-images-idx3-ubyte", f"{_PREFIX[split]}-labels-idx1-ubyte")

    def find(root: Path) -> tuple[Path, Path] | None:
        for place in places:
            images, labels = (_existing(root / place / name) for name in files)
            if images and labels:
                return images, labels
        return None

    expected = f"{files[0]} and {files[1]} (or .gz) in {' or '.join(_FOLDERS[section.name])}"
    images, labels = locate(section, find, expected=expected, torchvision=_TORCHVISION[section.name])
    x, y = _parse(images, ndim=3), _parse(labels, ndim=1)
    if x.shape[1:] != (28, 28):
        raise RunFailed(f"{images}: images of {x.shape[1]} x {x.shape[2]} pixels, expected 28 x 28")
    return labelled(x[:, None], y, 10, labels)


def _existing(path: Path) -> Path | None:
    """`path`, else `path`.gz, else None."""
    return next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.is_file()), None)


def _parse(path: Path, ndim: int) -> NDArray[np.uint8]:
    """The bytes of an IDX file: magic 0 0 type ndim, then ndim big-endian sizes, then the values in C order."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise RunFailed(f"{path}: cannot be read ({error})", hint="delete it and fetch it again") from error
    start = 4 + 4 * ndim
    if raw[:4] != bytes((0, 0, _UNSIGNED_BYTE, ndim)) or len(raw) < start:
        raise RunFailed(f"{path}: not an IDX file of bytes with {ndim} dimension(s); it begins with 0x{raw[:4].hex()}")
    shape = [int(n) for n in np.frombuffer(raw, ">u4", ndim, offset=4)]
    if len(raw) - start != math.prod(shape):
        raise RunFailed(
            f"{path}: {len(raw) - start} bytes of values where the header promises {math.prod(shape)}",
            hint="the file is truncated or damaged: delete it and fetch it again",
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
