"""CIFAR-10 from any of its forms on disk: 50000 + 10000 RGB images of 32 x 32 pixels, 10 classes.

Read are the python batches (folder or .tar.gz), the binary batches, and one lossless WebP sheet per batch with the
labels in `index.npz`. Source: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gentk.data.arrays import Arrays, Split, labelled
from gentk.data.fetch import locate
from gentk.errors import RunFailed
from gentk.recipe.schema import Data

Batch = tuple[NDArray[np.uint8], NDArray[np.integer]]  # images (N, 3, 32, 32) and labels (N,)

_BATCHES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "test": ("test_batch",),
}
_PLACES = ("", "cifar-10-batches-py", "cifar-10-batches-bin")
_ARCHIVE = "cifar-10-python.tar.gz"
_PIXELS = 3 * 32 * 32


def read(section: Data, split: Split) -> Arrays:
    """x (N, 3, 32, 32) and labels 0..9, the official batches in their order.

    Looked for in the root and in its folder `cifar10`. Raises MissingAsset, or RunFailed for a damaged file.
    """

    def find(root: Path) -> tuple[Path, Callable[[Path, Split], Batch]] | None:
        for base in (root, root / "cifar10"):
            for folder in (base / place for place in _PLACES):
                for suffix, reader in _FORMATS.items():
                    needed = [f"{name}{suffix}" for name in _BATCHES[split]] + ["index.npz"] * (suffix == ".webp")
                    if all((folder / name).is_file() for name in needed):
                        return folder, reader
            if (base / _ARCHIVE).is_file():
                return base / _ARCHIVE, _archive
        return None

    first, last = _BATCHES[split][0], _BATCHES[split][-1]
    span = first if first == last else f"{first} to {last}"
    expected = (
        f"cifar-10-batches-py/ ({span}), {_ARCHIVE}, cifar-10-batches-bin/ ({span} with .bin), "
        f"or {span} with .webp beside index.npz, there or in cifar10/"
    )
    where, reader = locate(section, find, expected=expected, torchvision="CIFAR10")
    x, y = reader(where, split)
    return labelled(x, y, 10, where)


def _joined(batches: list[Batch]) -> Batch:
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def _damaged(path: Path | str, why: object) -> RunFailed:
    return RunFailed(f"{path}: {why}", hint="the file is damaged or not of CIFAR-10: delete it and fetch it again")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, f"cannot be read ({error})") from error


def _python(folder: Path, split: Split) -> Batch:
    return _joined([_unpickle(_bytes(folder / name), folder / name) for name in _BATCHES[split]])


def _archive(path: Path, split: Split) -> Batch:
    """The same batches inside the tar file, read one after the other without unpacking it."""
    found: dict[str, Batch] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = Path(member.name).name
                if name in _BATCHES[split] and (file := tar.extractfile(member)):
                    found[name] = _unpickle(file.read(), f"{path}:{member.name}")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"cannot be read ({error})") from error
    if absent := [name for name in _BATCHES[split] if name not in found]:
        raise _damaged(path, f"holds no {', '.join(absent)}")
    return _joined([found[name] for name in _BATCHES[split]])


class _Unpickler(pickle.Unpickler):
    """A pickle can call anything it can name; here it may name only what rebuilds an array."""

    # numpy moved `core` to `_core`: files name either, and only numpy itself knows where the function is now.
    _allowed = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The allowed object `module.name`. Raises UnpicklingError for any other."""
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"the pickle asks for `{module}.{name}`, which no CIFAR-10 batch needs")
        return self._allowed[module, name]


def _unpickle(raw: bytes, path: Path | str) -> Batch:
    try:
        batch = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
        x, y = batch[b"data"], np.asarray(batch[b"labels"], np.int64)
    # A damaged pickle can fail in any way: wrong opcodes, lengths, keys or types, each with its own exception.
    except Exception as error:
        raise _damaged(path, f"not a CIFAR-10 batch ({error})") from error
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != _PIXELS:
        raise _damaged(path, f"`data` is not a uint8 array with {_PIXELS} columns")
    return x.reshape(-1, 3, 32, 32), y


def _binary(folder: Path, split: Split) -> Batch:
    """Records of one label byte and 3072 pixel bytes, channel by channel."""
    batches: list[Batch] = []
    for path in (folder / f"{name}.bin" for name in _BATCHES[split]):
        raw = np.frombuffer(_bytes(path), np.uint8)
        if len(raw) == 0 or len(raw) % (1 + _PIXELS):
            raise _damaged(path, f"{len(raw)} bytes are not whole records of {1 + _PIXELS}")
        records = raw.reshape(-1, 1 + _PIXELS)
        batches.append((records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]))
    return _joined(batches)


def _sheets(folder: Path, split: Split) -> Batch:
    """One picture per batch, tiled row by row with images of 32 x 32 pixels; `index.npz` holds the labels."""
    index = folder / "index.npz"
    try:
        with np.load(index, allow_pickle=False) as arrays:
            labels = arrays[f"{split}_labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(index, f"cannot be read ({error})") from error
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise _damaged(index, f"`{split}_labels` is not a list of integers")
    return np.concatenate([_tiles(folder / f"{name}.webp") for name in _BATCHES[split]]), labels


def _tiles(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            sheet = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise _damaged(path, f"cannot be read ({error})") from error
    height, width, _ = sheet.shape
    if height % 32 or width % 32:
        raise _damaged(path, f"{width} x {height} pixels are not whole tiles of 32 x 32")
    # (row, y, column, x, channel) -> (row, column, channel, y, x)
    return sheet.reshape(height // 32, 32, width // 32, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)


_FORMATS: dict[str, Callable[[Path, Split], Batch]] = {"": _python, ".bin": _binary, ".webp": _sheets}
