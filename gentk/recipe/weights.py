"""Files of weights that others publish: what they are, where they come from, and how one of them is found.

Nothing here is shipped. A file is taken from the path that the user gives, else from the cache, else downloaded into
it, and is used only with the checksum that its publisher, or everyone who fetched it, states. The cache is `weights` in
$GENTK_CACHE, else in `gentk` under $XDG_CACHE_HOME, else in `~/.cache/gentk`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gentk.errors import GentkError, MissingAsset, RunFailed
from gentk.recipe import download, store

BY_OPTION = "name the file by --weights PATH"


@dataclass(frozen=True)
class Weights:
    """One published file. `name` is that of the file in the cache.

    `size` is in bytes, None if not known. `sha256` holds the leading hexadecimal digits that are known: all 64, the
    first 8 that a file's name states, or none.
    """

    name: str
    url: str
    size: int | None
    sha256: str
    licence: str
    note: str

    def __str__(self) -> str:
        size = f"{self.size:,} bytes" if self.size else "size not published"
        digits = "sha256 " if len(self.sha256) == 64 else "sha256 begins with "
        return f"{self.name} ({size}, {digits + self.sha256 if self.sha256 else 'no sha256 published'})"


def cache() -> Path:
    """The folder of downloaded weights, whether it exists or not."""
    return store.cache() / "weights"


def forbidden() -> bool:
    """Whether the environment forbids the network: GENTK_OFFLINE or HF_HUB_OFFLINE is set, and not to 0."""
    off = ("", "0", "false", "no", "off")
    return any(os.environ.get(name, "").lower() not in off for name in ("GENTK_OFFLINE", "HF_HUB_OFFLINE"))


def find(
    weights: Weights,
    given: Path | None = None,
    offline: bool = False,
    progress: download.Progress | None = None,
    remedy: str = BY_OPTION,
    say: Callable[[str], None] | None = None,
) -> Path:
    """A file that holds `weights`: `given`, else the cache's, else, unless offline, the cache's after a download.

    `offline` adds to what the environment says; `remedy` is what a user without a network can do; the line that tells
    of a download goes to `say`, else to stderr. Raises MissingAsset, in under 2 s without a network, naming file,
    address, size, hash and place; RunFailed for a file of another checksum.
    """
    if given is not None:
        if not given.is_file():
            raise MissingAsset(f"{weights.name}: no file {given}", hint=f"it is {weights} from {weights.url}")
        return _verified(weights, given)
    path = cache() / weights.name
    if path.is_file():
        return _verified(weights, path)
    if offline or forbidden():
        raise _missing(weights, path, "offline, so that it was not fetched", remedy)
    line = f"fetching {weights} from {weights.url}"
    say(line) if say else print(line, file=sys.stderr)
    try:
        download.fetch(weights.url, path, weights.sha256, progress)
    except download.Unreachable as e:
        raise _missing(weights, path, str(e), remedy) from e
    return path


def _missing(weights: Weights, path: Path, why: str, remedy: str) -> MissingAsset:
    return MissingAsset(
        f"{weights} is not in the cache: {why}",
        hint=f"fetch {weights.url} and put it to {path}, or {remedy}",
    )


def _verified(weights: Weights, path: Path) -> Path:
    if weights.sha256 and not (found := digest(path)).startswith(weights.sha256):
        raise RunFailed(
            f"{path}: sha256 {found}, but {weights}",
            hint=f"the file is damaged or another one: remove it and fetch {weights.url}",
        )
    return path


_digests: dict[tuple[str, int, int], str] = {}


def digest(path: Path) -> str:
    """The sha256 of a file, hexadecimal; computed once a process unless size or time change."""
    try:
        status = path.stat()
        key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
        if key not in _digests:
            _digests[key] = download.digest(path)
    except OSError as e:
        raise GentkError(f"{path}: cannot be read: {e.strerror}") from e
    return _digests[key]
