"""What a file or a run says about its origin: safetensors headers (read without torch), versions behind a run."""

from __future__ import annotations

import json
import math
import platform
import struct
from importlib import metadata
from pathlib import Path
from typing import Any

from gentk import __version__
from gentk.errors import GentkError, MissingAsset

FORMAT = 1
_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format itself


def read_header(path: Path) -> dict[str, Any]:
    """The gentk header of a safetensors file, with `parameters` (a count) and `bytes` (of the file) added.

    Raises MissingAsset when there is no such file, GentkError when it is not a safetensors file written by gentk or
    when its length does not agree with its header (a download or copy that broke off).
    """
    if not path.is_file():
        raise MissingAsset(f"{path}: no such file", hint="gentk models list shows the models at hand")
    size = path.stat().st_size
    try:
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > min(size, _LARGEST_HEADER):
                raise ValueError
            table = json.loads(f.read(length))
        meta = table.pop("__metadata__", {})
        tensors = list(table.values())
        end = max((t["data_offsets"][1] for t in tensors), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as e:
        raise GentkError(
            f"{path}: not a safetensors file, or its header is damaged", hint="fetch or export it again"
        ) from e
    if size != 8 + length + end:
        raise GentkError(
            f"{path}: {size} bytes where its header says {8 + length + end}", hint="fetch or export it again"
        )
    try:
        header = json.loads(meta["gentk"])
        if header["format"] > FORMAT:
            raise GentkError(f"{path}: written by a newer gentk (format {header['format']})", hint="upgrade gentk")
    except (KeyError, TypeError, ValueError) as e:
        raise GentkError(
            f"{path}: a safetensors file without gentk's header: its architecture is unknown",
            hint="use a file that gentk exported (a run's export/ folder)",
        ) from e
    return {**header, "parameters": sum(math.prod(t["shape"]) for t in tensors), "bytes": size}


def write_header(header: dict[str, Any]) -> dict[str, str]:
    """The metadata mapping for a safetensors file: one JSON object under the key `gentk`."""
    return {"gentk": json.dumps({"format": FORMAT, "gentk_version": __version__, **header}, sort_keys=True)}


def versions() -> dict[str, str]:
    """Versions of Python, gentk and the packages that decide a run's numbers."""
    found = {"python": platform.python_version(), "gentk": __version__}
    for package in ("torch", "numpy", "scipy", "scikit-learn", "safetensors", "pydantic"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
