"""Where the images of an evaluation come from: files, runs, data sets and models, read or drawn in batches.

Nothing holds all images but a data set's own arrays: memory does not grow with the number of files or samples.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gentk import data
from gentk.data import folder, to_uint8
from gentk.engine import pictures
from gentk.engine.generative import Sampler
from gentk.engine.linear import LinearSampler
from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.processes.denoiser import Denoiser
from gentk.processes.energies import load_denoiser
from gentk.processes.grids import build
from gentk.processes.linear_denoiser import LinearDenoiser
from gentk.processes.models import fast_layout
from gentk.recipe.schema import Data, KarrasGrid

Batches = Callable[[int, int], Iterator[Tensor]]


@dataclass(frozen=True)
class Source:
    """n samples of one shape, images as uint8 (C, H, W) or points as float32 (D,).

    `batches(start, size)` yields samples from `start` on, in order, `size` at a time.
    """

    name: str
    n: int
    shape: tuple[int, ...]
    batches: Batches
    facts: dict[str, Any] = field(default_factory=dict)

    def first(self, n: int | None) -> Source:
        """The first n of them, all for None. Raises RecipeError where there are fewer."""
        if n is None or n == self.n:
            return self
        if n > self.n:
            raise RecipeError(f"n: {n} samples are asked for, `{self.name}` has {self.n}")
        whole = self.batches

        def batches(start: int, size: int) -> Iterator[Tensor]:
            left = n - start
            for part in whole(start, size):
                if left <= 0:
                    return
                yield part[:left]
                left -= len(part)

        return Source(self.name, n, self.shape, batches, self.facts)

    def all(self) -> Tensor:
        """Every sample at once."""
        return torch.cat(list(self.batches(0, 1000)))


def of_data(section: Data, split: data.Split) -> Source:
    """A split of a data set. Raises as `data.load`."""
    own = data.load(section, split)

    def batches(start: int, size: int) -> Iterator[Tensor]:
        for i in range(start, len(own), size):
            yield own.x[i : i + size]

    return Source(f"{section.name}, {split}", len(own), own.shape, batches)


def of_folder(path: Path) -> Source:
    """The pictures below a folder, at any depth, in sorted order. Raises as `data.folder`."""
    files = folder.pictures(path)
    grey = folder.survey(files)
    shape = folder.pixels(files[0], grey).shape

    def batches(start: int, size: int) -> Iterator[Tensor]:
        for i in range(start, len(files), size):
            yield torch.from_numpy(np.stack([folder.pixels(f, grey) for f in files[i : i + size]]))

    return Source(str(path), len(files), tuple(shape), batches, {"format": "pictures"})


# what numpy, zipfile and torch raise for files that are cut off, foreign, encrypted or hold text or objects
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)


def of_npz(path: Path) -> Source:
    """The array `samples` of an .npz file, read as a stream: the file is never held whole.

    uint8 (N, C, H, W), or float (N, D) for points. Raises GentkError, naming the file, for anything else.
    """
    with _npz(path), _member(path) as (shape, dtype, _):
        _check(path, shape, dtype)
    image = len(shape) == 4

    def batches(start: int, size: int) -> Iterator[Tensor]:
        row = int(np.prod(shape[1:])) * dtype.itemsize
        with _npz(path), _member(path) as (_, _, stream):
            _skip(stream, start * row)
            for i in range(start, shape[0], size):
                count = min(size, shape[0] - i)
                raw = _exactly(stream, count * row)
                x = torch.from_numpy(np.frombuffer(raw, dtype).reshape(count, *shape[1:]).copy())
                if not image and not bool(torch.isfinite(x).all()):
                    raise GentkError(f"{path}: the samples are not all finite")
                yield x if image else x.float()

    return Source(str(path), shape[0], tuple(shape[1:]), batches, {"format": "npz"})


@contextmanager
def _npz(path: Path) -> Iterator[None]:
    """Turns what a damaged file makes the readers raise into one message with its name."""
    try:
        yield
    except _UNREADABLE as error:
        raise GentkError(
            f"{path}: not an .npz file with an array `samples` of numbers: {error}",
            hint="gentk sample writes such files",
        ) from error


@contextmanager
def _member(path: Path) -> Iterator[tuple[tuple[int, ...], np.dtype[Any], IO[bytes]]]:
    """The array `samples` inside an .npz file: (shape, dtype, stream of its bytes)."""
    with zipfile.ZipFile(path) as archive, archive.open("samples.npy") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if fortran and len(shape) > 1:
            raise ValueError("its array is in Fortran order")
        if dtype.hasobject:
            raise ValueError("it holds objects")
        yield shape, dtype, stream


def _skip(stream: IO[bytes], n: int) -> None:
    while n:
        n -= len(_exactly(stream, min(n, 2**22)))


def _exactly(stream: IO[bytes], n: int) -> bytes:
    raw = stream.read(n)
    if len(raw) != n:
        raise EOFError("it ends before its array does")
    return raw


def _check(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    good = (len(shape) == 4 and dtype == np.uint8) or (len(shape) == 2 and dtype in (np.float32, np.float64))
    if not good:
        raise GentkError(
            f"{path}: `samples` is {dtype} of shape {tuple(shape)}",
            hint="expected uint8 (N, C, H, W) or float32 (N, D)",
        )
    if not shape[0]:
        raise GentkError(f"{path}: `samples` is empty")


def of_safetensors(path: Path) -> Source:
    """The tensor `samples` of a safetensors file that `gentk sample` wrote, read in slices."""
    try:
        with safe_open(path, framework="np") as file:
            part = file.get_slice("samples")
            shape = tuple(part.get_shape())
            dtype = {"U8": np.uint8, "F32": np.float32, "F64": np.float64}.get(part.get_dtype(), object)
    except (OSError, SafetensorError) as e:
        raise GentkError(f"{path}: not a safetensors file with a tensor `samples`: {e}") from e
    _check(path, shape, np.dtype(dtype))

    def batches(start: int, size: int) -> Iterator[Tensor]:
        with safe_open(path, framework="pt") as file:
            rows = file.get_slice("samples")
            for i in range(start, shape[0], size):
                yield rows[i : min(i + size, shape[0])]

    return Source(str(path), shape[0], shape[1:], batches, {"format": "safetensors"})


def of_model(ref: str, where: torch.device, *, n: int, steps: int, seed: int) -> Source:
    """n samples of a model: Heun's method with `steps` steps, or the one step of a generator; images as bytes."""
    model = load_denoiser(ref, kinds=("denoiser", "generator", "bridge"), where=where)
    fast_layout(model.net)
    once, cycle = model.header.get("sigma_init"), tuple(range(model.classes))
    sampler: Sampler | LinearSampler
    if isinstance(model.net, LinearDenoiser):
        grid = build(KarrasGrid(name="karras"), steps, model.net.process)
        sampler = LinearSampler(model.net, cycle, where, model.header["prior"], "heun", grid)
    else:
        assert isinstance(model.net, Denoiser)
        sampler = Sampler(model.net, model.shape, cycle, where, steps, once)

    def batches(start: int, size: int) -> Iterator[Tensor]:
        for i in range(start, n, size):
            x = sampler.part(i, min(size, n - i), seed)
            yield to_uint8(x) if x.dim() == 4 else x

    facts = {"sampler": "one-step" if once else "heun", "nfe": sampler.nfe, "seed": seed}
    return Source(ref, n, model.shape, batches, facts)


def panels(source: Source, partner: Source | None = None) -> Image:
    """The first images of a source, beside those of `partner` where both have one shape."""
    count = next((n for side, n in ((32, 100), (64, 64), (128, 36)) if max(source.shape[1:]) <= side), 16)
    x = next(source.batches(0, count))[:count]
    if partner is None or partner.shape != source.shape:
        return pictures.grid(x)
    y = next(partner.batches(0, count))[:count]
    n = min(len(x), len(y))
    return pictures.side_by_side({"samples": x[:n], "reference": y[:n]})


def located(path: Path) -> Path:
    """The file with the samples of a sample run's folder. Raises MissingAsset where it wrote none."""
    for name in ("samples.npz", "samples.safetensors", "png"):
        if (path / name).exists():
            return path / name
    raise MissingAsset(
        f"{path}: a sample run without samples.npz", hint="sample again with npz among `save`, to the end"
    )
