"""Killed at any instant, also in the middle of a save, and resumed each time: the same weights bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import DENOISER

ROOT = Path(__file__).parents[2]
LONG = (
    DENOISER.replace("steps: 12", "steps: 400")
    .replace("checkpoint_every: 4", "checkpoint_every: 3")
    .replace("width: 16, blocks: 1", "width: 256, blocks: 2")  # a state of some size: saves take a while
)
Write = Callable[[str, str], Path]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_twenty_kills(write: Write, tmp_path: Path) -> None:
    recipe = write("r.yaml", LONG)
    words = [sys.executable, "-m", "tests.engine.zygote", str(recipe)]
    whole = subprocess.run(
        [*words, str(tmp_path / "whole"), "0", "0"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert whole.stdout == "ended 0\n", whole.stderr
    killed = subprocess.run(
        [*words, str(tmp_path / "cut"), "20", "1"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    lines = killed.stdout.splitlines()
    assert len(lines) == 21, killed.stdout + killed.stderr
    assert lines[-1] == "ended 0", killed.stderr
    assert sum(line.endswith("True") for line in lines[:-1]) >= 3, "no kill fell into a save: the test lost its point"
    first, second = (load_file(tmp_path / run / "export" / "denoiser.safetensors") for run in ("whole", "cut"))
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].equal(second[name]), name
    info = json.loads((tmp_path / "cut" / "run.json").read_text())
    assert info["status"] == "done"
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_asked_to_stop(name: str, write: Write, tmp_path: Path) -> None:
    """A real process: exit 75 with a checkpoint, and the same command goes on to the same weights."""
    recipe = write(
        "r.yaml", LONG.replace("checkpoint_every: 3", "checkpoint_every: 100000").replace("steps: 400", "steps: 4000")
    )
    command = [sys.executable, "-m", "gentk", "train", "--recipe", str(recipe), "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert f"stopped by {name}" in said
    assert "Traceback" not in said
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["status"] == "stopped"
    assert 0 < info["step"] < 4000
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"{info['step']:08d}"]
