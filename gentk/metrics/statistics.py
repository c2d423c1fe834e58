"""Statistics of features in files: mean and covariance, as EDM, clean-fid and pytorch-fid write them, and our own.

Theirs (.npz) hold `mu` (D,) and `sigma` (D, D), nothing else: neither the protocol nor the number of images. Ours add
`n`, `protocol` and `weights` (the sha256 of the network's file), so that a mismatch is seen: statistics of one pipeline
with features of another give a figure, and a wrong one.
"""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gentk.errors import GentkError, MissingAsset, RecipeError, RunFailed
from gentk.metrics.frechet import Moments

_KEYS: tuple[str, ...] = ("mu", "sigma", "n", "protocol", "weights", "feats")
_ASYMMETRY = 1e-5  # of the largest entry; float32 sums in another order give 1e-7
# clean-fid's files name their protocol: NAME_MODE_SPLIT_RESOLUTION.npz.
_CLEAN_FID = re.compile(r"_(clean|legacy_tensorflow|legacy_pytorch)_[a-z0-9]+_(?:\d+|na)(?:_kid)?\.npz$", re.IGNORECASE)
_MODES = {"clean": "clean", "legacy_tensorflow": "edm", "legacy_pytorch": "legacy-pytorch"}


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean (D,) and unbiased covariance (D, D) of features, and what the file says of them, None where it does not."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    n: int | None
    protocol: str | None
    weights: str | None

    @property
    def moments(self) -> Moments:
        """For `frechet`, which uses no count: an unknown n is put as 2, and such moments must not be merged."""
        return Moments.known(self.n or 2, self.mean, self.covariance)


def read(
    path: Path, *, protocol: str | None = None, weights: str | None = None, width: int | None = None
) -> Statistics:
    """The statistics in `path`, for features of `width` dimensions made by `protocol` with `weights` (a sha256).

    What the file does not say cannot be checked. Features in the file (`feats`, as clean-fid stores them for KID)
    count as statistics too. Raises MissingAsset without the file; RecipeError if it is of another protocol, other
    weights or another width; GentkError if it holds no statistics: wrong keys or shapes, NaN, no covariance.
    """
    if not path.is_file():
        raise MissingAsset(f"{path}: no such statistics file", hint="an .npz with `mu` and `sigma`")
    try:
        with path.open("rb") as stream:  # opened here: numpy leaves a broken archive open
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise _broken(path, "is one array, not an .npz")
            found: dict[str, NDArray[Any]] = {key: file[key] for key in _KEYS if key in file.files}
            keys = ", ".join(f"`{key}`" for key in file.files) or "none"
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as e:
        raise _broken(path, f"cannot be read ({' '.join(str(e).split())})") from e
    named = _text(found, "protocol")
    if named is None and (match := _CLEAN_FID.search(path.name)):
        named = _MODES[match[1].lower()]
    if protocol and named and named != protocol:
        raise RecipeError(
            f"{path}: statistics of protocol `{named}`, but the features are of `{protocol}`",
            hint=f"use --protocol {named}, or statistics made by {protocol}",
        )
    of = _text(found, "weights")
    if weights and of and of != weights:
        raise RecipeError(
            f"{path}: statistics made with other weights, sha256 {of}; the features are made with {weights}",
            hint="make the statistics anew with the weights at hand",
        )
    mean, covariance, n = _numbers(path, found, keys)
    if width is not None and len(mean) != width:
        raise RecipeError(f"{path}: statistics of {len(mean)} features, but the protocol has {width}")
    return Statistics(mean, covariance, n, named, of)


def write(path: Path, moments: Moments, *, protocol: str, weights: str) -> None:
    """Writes statistics that say where they come from, whole or not at all; EDM and pytorch-fid can read them too.

    Raises RunFailed when the disk refuses, or below two samples.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    covariance = moments.covariance
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, mu=moments.mean, sigma=covariance, n=moments.n, protocol=protocol, weights=weights)
        temporary.replace(path)
    except OSError as e:
        with suppress(OSError):
            temporary.unlink()
        raise RunFailed(
            f"{path}: cannot be written: {e.strerror}", hint="free disk space or choose another place"
        ) from e


def _numbers(
    path: Path, found: dict[str, NDArray[Any]], keys: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], int | None]:
    for key in ("mu", "sigma", "n", "feats"):
        if key in found and found[key].dtype.kind not in "fiu":
            raise _broken(path, f"`{key}` is of type {found[key].dtype}, not numbers")
    if "feats" in found and "mu" not in found:
        features = found["feats"].astype(np.float64)
        if features.ndim != 2 or len(features) < 2:
            raise _broken(path, f"`feats` has shape {features.shape}, expected (N, D)")
        _finite(path, feats=features)
        own = Moments().update(features)
        return own.mean, own.covariance, own.n
    if "mu" not in found or "sigma" not in found:
        raise _broken(path, f"must hold `mu` and `sigma`, has {keys}")
    mean, covariance = found["mu"].astype(np.float64), found["sigma"].astype(np.float64)
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not len(mean):
        raise _broken(path, f"`mu` {mean.shape} and `sigma` {covariance.shape} have not the shapes (D,) and (D, D)")
    _finite(path, mu=mean, sigma=covariance)
    largest = np.abs(covariance).max()
    if (off := np.abs(covariance - covariance.T).max()) > _ASYMMETRY * largest:
        raise _broken(path, f"`sigma` is no covariance: not symmetric, by up to {off:.3g} of {largest:.3g}")
    if (covariance.diagonal() < 0).any():
        raise _broken(path, "`sigma` is no covariance: negative variances")
    if "n" not in found:
        return mean, covariance, None
    n = found["n"]
    if n.size != 1 or n.item() < 2 or n.item() % 1:
        raise _broken(path, f"`n` is {n.tolist()}, expected a number of images")
    return mean, covariance, int(n.item())


def _finite(path: Path, **arrays: NDArray[np.float64]) -> None:
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise _broken(path, f"`{key}` holds NaN or infinity")


def _text(found: dict[str, NDArray[Any]], key: str) -> str | None:
    return str(found[key]) if key in found else None


def _broken(path: Path, fault: str) -> GentkError:
    return GentkError(f"{path}: {fault}", hint="a statistics file is an .npz with `mu` (D,) and `sigma` (D, D)")
