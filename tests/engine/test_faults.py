"""What a long run meets: each fault ends with a message that helps; the same command goes on to the same weights.

What else is promised of faults is tested where it belongs:

    kill -9 at random instants                  test_kill.py, test_kills.py, benchmarks/kills.py
    signals; a checkpoint that is cut short     test_kill.py; test_checkpoint.py
    two processes on one run folder             test_run.py
    a number that is not finite                 test_loop.py
    metrics torn by a crash; a full disk        test_log.py; test_checkpoint.py, and here in the middle of a run
    no network, or one that is lost             tests/recipe/test_weights.py
    faults of one process among several         tests/engine/test_dist*.py
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from gentk.cli.app import app
from gentk.engine import log, room
from gentk.engine import run as running
from gentk.engine.log import Log
from tests.conftest import DENOISER

Write = Callable[[str, str], Path]
STEPS, EVERY = 12, 4


def gentk(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    path.write_text(DENOISER)
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> Path:
    result = gentk("train", "--recipe", recipe, "--out", recipe.parent / "run", "--quiet")
    assert result.exit_code == 0, result.output
    return recipe.parent / "run"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of three megabytes."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("mounting a small file system needs root on Linux")
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("this machine does not allow mounting a tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def at_step(step: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Does something in the middle of the run, after the metrics of `step` are written."""
    metrics = Log.metrics

    def disturbed(self: Log, at: int, images: int, values: dict[str, float]) -> None:
        metrics(self, at, images, values)
        if at == step and not any(name.startswith("eval/") for name in values):
            act()

    monkeypatch.setattr(Log, "metrics", disturbed)


def stopped(run: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A run that is stopped by SIGTERM at step 8 or the next; returns the step that it saved."""
    with monkeypatch.context() as patch:
        at_step(8, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        result = gentk("train", "--recipe", recipe, "--out", run, "--quiet")
    assert result.exit_code == 75, result.output
    step = json.loads((run / "run.json").read_text())["step"]
    assert step in (8, 9)
    return int(step)


def failed(run: Path, recipe: Path, *said: str) -> None:
    result = gentk("train", "--recipe", recipe, "--out", run, "--quiet")
    assert result.exit_code == 1, (result.output, result.exception)
    assert "Traceback" not in result.stderr
    assert "hint: " in result.stderr
    for words in said:
        assert words in result.stderr


def goes_on(run: Path, recipe: Path, undisturbed: Path, *, since: int) -> None:
    """The same command finishes the run from the checkpoint of step `since`, with the weights of no disturbance."""
    kept = sorted(int(p.parent.name) for p in run.glob("checkpoints/[0-9]*/meta.json"))
    assert kept[-1:] == ([since] if since else [])
    result = gentk("train", "--recipe", recipe, "--out", run, "--quiet")
    assert result.exit_code == 0, result.output
    one, other = (load_file(folder / "export" / "denoiser.safetensors") for folder in (run, undisturbed))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_disk_that_fills_up(disk: Path, recipe: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill() -> None:
        with (disk / "filler").open("wb", buffering=0) as file:
            try:
                for size in (2**16, 2**10):
                    while file.write(bytes(size)):
                        pass
            except OSError:
                pass

    at_step(8, fill, monkeypatch)
    failed(disk / "run", recipe, "No space left on device", "free disk space", "the checkpoint of step 4 stands")
    (disk / "filler").unlink()
    monkeypatch.undo()
    goes_on(disk / "run", recipe, undisturbed, since=4)


def test_a_disk_that_cannot_hold_the_checkpoints(disk: Path, recipe: Path) -> None:
    """Said before the first step; nothing that a longer wait would have shown."""
    failed(disk / "run", recipe.with_name("wide.yaml"), "the disk has", "checkpoints of", "train.keep")
    assert not list((disk / "run").glob("checkpoints/*"))


@pytest.fixture(autouse=True, scope="module")
def wide(recipe: Path) -> None:
    recipe.with_name("wide.yaml").write_text(DENOISER.replace("width: 16, blocks: 1", "width: 256, blocks: 2"))


def test_a_disk_that_turns_read_only(
    disk: Path, recipe: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True, capture_output=True)

    step = stopped(disk / "run", recipe, monkeypatch)
    mount("ro")
    failed(disk / "run", recipe, "Read-only file system", "--out")
    mount("rw")
    goes_on(disk / "run", recipe, undisturbed, since=step)


def test_a_clock_that_jumps(recipe: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Years back and forth, and files from the future: steps and seconds are counted, not read off a clock."""
    jumps = iter(range(10**6))

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=400 * (-1) ** next(jumps))

    for module in (running, log):
        monkeypatch.setattr(module, "datetime", Jumping)
    monkeypatch.setattr("time.time", lambda: float(10**9 * (next(jumps) % 3)))
    run = tmp_path / "run"
    step = stopped(run, recipe, monkeypatch)
    for k, path in enumerate(sorted(run.glob("checkpoints/*"))):
        os.utime(path, (0, 10**9 * (2 - k)))  # the older checkpoint looks the newer
    goes_on(run, recipe, undisturbed, since=step)
    info = json.loads((run / "run.json").read_text())
    assert 0 < info["seconds"] < 600


def test_no_memory_left(recipe: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own error on the CPU, in the middle of step 7."""
    backward, calls = torch.Tensor.backward, iter(range(1000))

    def hungry(self: torch.Tensor, *given: Any, **more: Any) -> None:
        if next(calls) == 6:
            torch.empty(2**60)
        backward(self, *given, **more)

    monkeypatch.setattr(torch.Tensor, "backward", hungry)
    failed(tmp_path / "run", recipe, "out of memory", "train.accumulate=2", "train.batch")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    monkeypatch.undo()
    goes_on(tmp_path / "run", recipe, undisturbed, since=4)


def test_another_error_keeps_its_traceback(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: torch.Tensor) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch.Tensor, "backward", broken)
    result = gentk("train", "--recipe", recipe, "--out", tmp_path / "run", "--quiet")
    assert isinstance(result.exception, RuntimeError)


def test_a_checkpoint_cut_short(
    recipe: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    step = stopped(run, recipe, monkeypatch)
    newest = max((run / "checkpoints" / f"{step:08d}").iterdir(), key=lambda path: path.stat().st_size)
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    goes_on(run, recipe, undisturbed, since=step)
    assert "damaged checkpoint" in (run / "log.txt").read_text()


def test_a_run_folder_moves_to_another_place_and_machine(
    recipe: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "here" / "run"
    step = stopped(run, recipe, monkeypatch)
    there = tmp_path / "there" / "of another name"
    there.parent.mkdir()
    shutil.copytree(run, there)  # as a copy to another machine: other inodes, the lock's line names a process of here
    shutil.rmtree(run.parent)
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    goes_on(there, recipe, undisturbed, since=step)
    info = json.loads((there / "run.json").read_text())
    assert (info["host"], info["status"]) == ("elsewhere", "done")
    texts = [path.read_text() for path in there.iterdir() if path.suffix in (".html", ".yaml", ".jsonl")]
    assert not any(str(run.parent) in text for text in texts), "nothing in the folder points to where it was"


def test_the_estimate_is_the_size_of_a_checkpoint(undisturbed: Path) -> None:
    from gentk.engine import precision
    from gentk.recipe.load import load
    from gentk.recipe.registry import method_module

    method = method_module("train", "denoiser").build(load(undisturbed / "recipe.yaml").recipe, precision.device("cpu"))
    wanted = room.wanted(method, keep=2)
    real = sum(f.stat().st_size for f in (undisturbed / "checkpoints" / f"{STEPS:08d}").iterdir())
    model = (undisturbed / "export" / "denoiser.safetensors").stat().st_size
    assert wanted.count == 3
    assert wanted.checkpoint < real < wanted.checkpoint + 40_000  # names and shapes, of some 50 tensors, come on top
    assert wanted.models < model < wanted.models + 10_000
    assert "KiB" in str(wanted)


@pytest.mark.parametrize(
    ("count", "text"), [(1, "1 B"), (1024, "1 KiB"), (3 * 2**29, "1.5 GiB"), (5 * 2**40, "5.0 TiB")]
)
def test_sizes_for_eyes(count: int, text: str) -> None:
    assert room.size(count) == text
