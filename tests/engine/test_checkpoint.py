"""Checkpoints appear whole or not at all, damage is found and named, and a full disk loses nothing."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gentk.engine import checkpoint
from gentk.errors import RunFailed

CPU = torch.device("cpu")


def state(step: int) -> dict[str, object]:
    return {"step": step, "nets": {"a": {"w": torch.full((3,), float(step))}}}


def latest(folder: Path) -> tuple[int | None, list[str]]:
    said: list[str] = []
    found = checkpoint.latest(folder, CPU, said.append)
    return (None if found is None else found["step"]), said


def test_saves_loads_and_prunes(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, state(step), keep=2)
    assert checkpoint.steps(tmp_path) == [20, 30]
    assert latest(tmp_path) == (30, [])
    assert not list(tmp_path.glob(".*"))


def test_nothing_to_load(tmp_path: Path) -> None:
    assert latest(tmp_path / "absent") == (None, [])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no meta", "bad meta", "no state"])
def test_damage_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, step, state(step), keep=2)
    path = tmp_path / "00000020"
    content = (path / "state.pt").read_bytes()
    if damage == "truncated":
        (path / "state.pt").write_bytes(content[:-1])
    elif damage == "flipped":
        middle = len(content) // 2
        (path / "state.pt").write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "no meta":
        (path / "meta.json").unlink()
    elif damage == "bad meta":
        (path / "meta.json").write_text("{")
    else:
        (path / "state.pt").unlink()
    step, said = latest(tmp_path)
    assert step == 10
    if damage == "no meta":
        assert said == []  # it never was a checkpoint
    else:
        assert len(said) == 1
        assert "00000020" in said[0]
        assert "damaged" in said[0]


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 10, state(10), keep=1)
    (tmp_path / "00000010" / "state.pt").write_bytes(b"")
    with pytest.raises(RunFailed, match="every checkpoint is damaged"):
        latest(tmp_path)


def test_a_damaged_checkpoint_is_replaced_when_the_run_gets_there_again(tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, step, state(step), keep=2)
    (tmp_path / "00000020" / "state.pt").write_bytes(b"")
    checkpoint.save(tmp_path, 20, state(20), keep=2)
    assert latest(tmp_path) == (20, [])


def test_pruning_never_counts_a_damaged_newer_one(tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint.save(tmp_path, step, state(step), keep=2)
    (tmp_path / "00000020" / "state.pt").write_bytes(b"")
    checkpoint.save(tmp_path, 12, state(12), keep=1)  # resumed from 10, stopped on request at 12
    assert latest(tmp_path) == (12, [])


def test_leftovers_of_a_killed_save_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".00000010.123.tmp").mkdir()
    checkpoint.save(tmp_path, 20, state(20), keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["00000020"]


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    """weights_only: a state that would run code on loading does not load."""

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("echo run > " + str(tmp_path / "executed"),)

    checkpoint.save(tmp_path, 10, {"step": 10, "x": Payload()}, keep=1)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        latest(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    """A real OSError from the kernel in the middle of a save: the file size limit of the process."""
    checkpoint.save(tmp_path, 10, state(10), keep=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(RunFailed, match="the checkpoint of step 10 stands"):
            checkpoint.save(tmp_path, 20, {"step": 20, "w": torch.zeros(100_000)}, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert latest(tmp_path) == (10, [])
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small file system needs root on Linux"
)
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("this machine does not allow mounting a tmpfs")
    try:
        checkpoint.save(small, 10, state(10), keep=2)
        with pytest.raises(RunFailed, match="No space left on device; the checkpoint of step 10 stands"):
            checkpoint.save(small, 20, {"step": 20, "w": torch.zeros(100_000)}, keep=2)
        assert latest(small) == (10, [])
    finally:
        subprocess.run(["umount", str(small)], check=True)
