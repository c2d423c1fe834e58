"""Checkpoints that appear whole or not at all.

`checkpoints/NNNNNNNN/` holds `state.pt` and `meta.json`. A checkpoint is written into a hidden folder beside it, the
meta file with the state's size and sha256 last, everything fsynced, then renamed; older ones are pruned only after
that. A folder without a meta file is no checkpoint, and one whose checksum does not match is named and passed over.

Several processes that each keep a part of the networks (`engine/shards.py`) write `*.safetensors` in place of
`state.pt`, each its own, by torch.distributed.checkpoint. Any number of processes reads either kind.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gentk.engine import dist
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
    sink: _Hashed | None = None
    try:
        temporary = _begun(folder, step)
        with (temporary / _STATE).open("wb") as f:
            sink = _Hashed(f)
            torch.save(state, sink)  # type: ignore[arg-type]
            f.flush()
            os.fsync(f.fileno())
        files = {_STATE: {"bytes": sink.size, "sha256": sink.digest.hexdigest()}}
        final = _finished(folder, step, {"step": step, "files": files})
    except (OSError, RuntimeError) as e:
        cause = e if isinstance(e, OSError) else (sink.error if sink else None)
        if cause is None:
            raise
        raise _refused(folder, step, cause.strerror or str(cause)) from e
    _prune(folder, step, keep)
    return final


def save_parts(folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], *, keep: int) -> Path:
    """The same of tensors that the processes hold parts of, in all of them at once; `facts` is plain JSON."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    group = dist.current()

    def begin() -> str:
        try:
            return str(_begun(folder, step))
        except OSError as e:
            raise _refused(folder, step, e.strerror or str(e)) from e

    def finish() -> str:
        try:
            files = {}
            for path in sorted(temporary.glob("*.safetensors")):
                with path.open("rb+") as f:
                    os.fsync(f.fileno())
                    files[path.name] = {
                        "bytes": path.stat().st_size,
                        "sha256": hashlib.file_digest(f, "sha256").hexdigest(),
                    }
            return str(_finished(folder, step, {"step": step, "files": files, "facts": facts}))
        except OSError as e:
            raise _refused(folder, step, e.strerror or str(e)) from e

    temporary = Path(group.from_first(begin))
    try:
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True))
    except CheckpointException as e:  # it holds what each process has met
        errors = [fault for fault in e.failures.values() if isinstance(fault[0], OSError)]
        if not errors:
            raise
        raise _refused(folder, step, str(errors[0][0])) from e
    final = Path(group.from_first(finish))
    if group.first:
        _prune(folder, step, keep)
    return final


def _begun(folder: Path, step: int) -> Path:
    """The hidden folder that a checkpoint is written into."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".*.tmp"):  # left by a run that was killed in the middle of a save
        shutil.rmtree(stale)
    temporary = _hidden(folder, step)
    temporary.mkdir()
    return temporary


def _finished(folder: Path, step: int, meta: dict[str, Any]) -> Path:
    """The checkpoint under its own name, with its meta file."""
    temporary, final = _hidden(folder, step), folder / f"{step:08d}"
    with (temporary / _META).open("w", encoding="utf-8") as g:
        json.dump(meta, g)
        g.flush()
        os.fsync(g.fileno())
    _sync(temporary)
    if final.exists():  # only a damaged one: a run never reaches the same step twice with a whole one behind it
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(folder)
    return final


def _hidden(folder: Path, step: int) -> Path:
    return folder / f".{step:08d}.{os.getpid()}.tmp"


def _refused(folder: Path, step: int, cause: str) -> RunFailed:
    shutil.rmtree(_hidden(folder, step), ignore_errors=True)
    last = steps(folder)
    stands = f"the checkpoint of step {last[-1]} stands" if last else "there is no earlier checkpoint"
    return RunFailed(
        f"{folder / f'{step:08d}'}: checkpoint cannot be written: {cause}; {stands}",
        hint="free disk space, then run the same command again",
    )


def _prune(folder: Path, step: int, keep: int) -> None:
    found = steps(folder)
    newest = [s for s in found if s <= step][-keep:]
    for old in (s for s in found if s not in newest):  # those beyond `step` are damaged, else the run stood there
        doomed = (folder / f"{old:08d}").rename(folder / f".{old:08d}.tmp")  # a kill in here leaves no half checkpoint
        shutil.rmtree(doomed, ignore_errors=True)


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder` that have a meta file, oldest first."""
    return sorted(int(p.parent.name) for p in folder.glob(f"[0-9]*/{_META}") if p.parent.name.isdigit())


@dataclass(frozen=True)
class Parts:
    """A checkpoint in parts, undamaged and unread."""

    path: Path
    step: int
    facts: dict[str, Any]

    def read(self, make: Callable[[str, torch.Size, torch.dtype], Tensor]) -> dict[str, Tensor]:
        """Its tensors, read into those that `make` gives for a name, shape and type: whole ones or parts."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        reader = HuggingFaceStorageReader(str(self.path))
        about: Any = reader.read_metadata().state_dict_metadata
        found = {name: make(name, each.size, each.properties.dtype) for name, each in about.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)  # it is
            load(found, storage_reader=reader, no_dist=dist.current().size == 1)
        return found


def _load(path: Path, device: torch.device) -> dict[str, Any] | Parts:
    """The state of one checkpoint. Raises ValueError saying what is damaged."""
    try:
        meta = json.loads((path / _META).read_text("utf-8"))
        for name, facts in meta["files"].items():
            with (path / Path(name).name).open("rb") as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
            size = (path / name).stat().st_size
            if size != facts["bytes"]:
                raise ValueError(f"{name} has {size} bytes instead of {facts['bytes']}")
            if digest != facts["sha256"]:
                raise ValueError(f"the checksum of {name} does not match")
        if "facts" in meta:
            return Parts(path, meta["step"], meta["facts"])
        state: dict[str, Any] = torch.load(path / _STATE, map_location=device, weights_only=True)
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as e:
        raise ValueError(f"{_META} or a file that it names cannot be read ({e})") from e
    return state


def latest(folder: Path, device: torch.device, warn: Callable[[str], None]) -> dict[str, Any] | Parts | None:
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
