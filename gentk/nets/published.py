"""Published weights that lie in $GENTK_DATA: found, checked against the known hash, and loaded."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import nn

from gentk.errors import MissingAsset, RunFailed


@dataclass(frozen=True)
class Published:
    """One file of weights: `NAME.safetensors` in a folder of $GENTK_DATA, `size` bytes, trained by others."""

    name: str
    folder: str
    size: int
    sha256: str
    source: str  # owner/repository@commit: path of the original file
    licence: str

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{self.name}.safetensors"


def fill(net: nn.Module, weights: Published, given: Path | None = None) -> None:
    """Loads `weights` into `net`, from the file `given`, else from $GENTK_DATA/FOLDER/NAME.safetensors.

    Raises MissingAsset where there is no such file, RunFailed if it cannot be read or is another one: a figure that
    is named after these weights is no such figure with others.
    """
    path = _find(weights, given)
    try:
        content = path.read_bytes()
    except OSError as e:
        raise RunFailed(f"{path}: cannot be read: {e.strerror}") from e
    found = hashlib.sha256(content).hexdigest()
    if found != weights.sha256:
        raise RunFailed(
            f"{path}: {len(content)} bytes, sha256 {found}, expected the {weights.size} bytes of {weights.name}, "
            f"sha256 {weights.sha256}",
            hint="the file is damaged or holds other weights: fetch it again",
        )
    # Batch norm counts the batches of its training; files leave that out, and in eval mode nothing reads it.
    counters = {k: v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")}
    net.load_state_dict(counters | safetensors.torch.load(content))


def _find(weights: Published, given: Path | None) -> Path:
    root = os.environ.get("GENTK_DATA")
    path = given or (Path(root).expanduser() / weights.folder / weights.file if root else None)
    if path and path.is_file():
        return path
    problem = f"no file {path}" if path else f"GENTK_DATA is not set, which is to hold {weights.folder}/{weights.file}"
    raise MissingAsset(
        f"{weights.name}: {problem}; {weights.size} bytes, sha256 {weights.sha256}, made from {weights.source}",
        hint=f"name the file by --weights PATH, or set GENTK_DATA to the folder with {weights.folder}/{weights.file}",
    )
