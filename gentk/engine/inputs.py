"""What a run was made from: digests of its input files, so that a finished run is not taken for that of other files."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gentk.engine.run import Job, read_info
from gentk.recipe.explain import digest


def digests(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 in hex of each file, by the name that the user gave it; of a folder, that of all its files and names."""
    return {name: _of(path).hexdigest() for name, path in files.items()}


def renewed(job: Job, inputs: dict[str, str]) -> Job:
    """The job, set to start afresh where its folder holds the finished run of the same recipe on other inputs.

    The old folder is kept aside. Another recipe in the folder is left for `Run` to refuse.
    """
    info = read_info(job.out) if job.mode != "fresh" else None
    if info is None or info.get("status") != "done" or info.get("digest") != digest(job.recipe):
        return job
    before = info.get("inputs", {})
    changed = [name for name, value in inputs.items() if before.get(name) != value]
    if not changed:
        return job
    if not job.quiet:
        print(
            f"{job.out}: made from another {', '.join(changed)}: doing it again, the old folder kept aside",
            file=sys.stderr,
        )
    return replace(job, mode="fresh")


def _of(path: Path) -> hashlib._Hash:
    if path.is_dir():
        whole = hashlib.sha256()
        for each in sorted(p for p in path.rglob("*") if p.is_file()):
            whole.update(f"{each.relative_to(path).as_posix()}\0".encode() + _of(each).digest())
        return whole
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256")
