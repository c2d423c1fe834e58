"""Checkpoints that appear whole or not at all.

`checkpoints/NNNNNNNN/` holds `state.pt` and `meta.json`. A checkpoint is written into a hidden folder beside it, the
meta file with the state's size and sha256 last, everything fsynced, then renamed; older ones are pruned only after
that. A folder without a meta file is no checkpoint, and one whose checksum does not match is named and passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gentk.errors import RunFailed

_STATE, _META = "state.pt", "meta.json"


class _Hashed:
    """A binary file that hashes what passes through and keeps the error that stopped it (torch.save hides it)."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size, self.error = file, hashlib.sha256(), 0, None

    error: OSError | None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as e:
            self.error = e
            raise
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Writes `state` as checkpoint `step` of `folder`, then removes all but the newest `keep`.

    Raises RunFailed when the disk refuses; the checkpoints that were there stay.
    """
    final = folder / f"{step:08d}"
    temporary = folder / f".{step:08d}.{os.getpid()}.tmp"
    sink: _Hashed | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".*.tmp"):  # left by a run that was killed in the middle of a save
            shutil.rmtree(stale)
        temporary.mkdir()
        with (temporary / _STATE).open("wb") as f:
            sink = _Hashed(f)
            torch.save(state, sink)  # type: ignore[arg-type]
            f.flush()
            os.fsync(f.fileno())
        meta = {"step": step, "files": {_STATE: {"bytes": sink.size, "sha256": sink.digest.hexdigest()}}}
        with (temporary / _META).open("w", encoding="utf-8") as g:
            json.dump(meta, g)
            g.flush()
            os.fsync(g.fileno())
        _sync(temporary)
        if final.exists():  # only a damaged one: a run never reaches the same step twice with a whole one behind it
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(folder)
    except (OSError, RuntimeError) as e:
        cause = e if isinstance(e, OSError) else (sink.error if sink else None)
        if cause is None:
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        last = steps(folder)
        stands = f"the checkpoint of step {last[-1]} stands" if last else "there is no earlier checkpoint"
        raise RunFailed(
            f"{final}: checkpoint cannot be written: {cause.strerror or cause}; {stands}",
            hint="free disk space, then run the same command again",
        ) from e
    found = steps(folder)
    newest = [s for s in found if s <= step][-keep:]
    for old in (s for s in found if s not in newest):  # those beyond `step` are damaged, else the run stood there
        doomed = (folder / f"{old:08d}").rename(folder / f".{old:08d}.tmp")  # a kill in here leaves no half checkpoint
        shutil.rmtree(doomed, ignore_errors=True)
    return final


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder` that have a meta file, oldest first."""
    return sorted(int(p.parent.name) for p in folder.glob(f"[0-9]*/{_META}") if p.parent.name.isdigit())


def _load(path: Path, device: torch.device) -> dict[str, Any]:
    """The state of one checkpoint. Raises ValueError saying what is damaged."""
    try:
        meta = json.loads((path / _META).read_text("utf-8"))
        facts = meta["files"][_STATE]
        with (path / _STATE).open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        size = (path / _STATE).stat().st_size
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{_META} or {_STATE} cannot be read ({e})") from e
    if size != facts["bytes"]:
        raise ValueError(f"{_STATE} has {size} bytes instead of {facts['bytes']}")
    if digest != facts["sha256"]:
        raise ValueError(f"the checksum of {_STATE} does not match")
    state: dict[str, Any] = torch.load(path / _STATE, map_location=device, weights_only=True)
    return state


def latest(folder: Path, device: torch.device, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest undamaged state of `folder`, or None when there is no checkpoint; damaged ones are named to `warn`.

    Raises RunFailed when there are checkpoints and all are damaged: starting over silently would lose the run.
    """
    found = steps(folder)
    for step in reversed(found):
        path = folder / f"{step:08d}"
        try:
            return _load(path, device)
        except ValueError as e:
            warn(f"{path}: damaged checkpoint: {e}; trying the one before it")
    if found:
        raise RunFailed(
            f"{folder}: every checkpoint is damaged", hint="--fresh starts again and keeps the old folder aside"
        )
    return None
