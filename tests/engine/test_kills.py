"""A few random kills over a few methods, each resumed to the weights of the whole run; benchmarks/kills.py has all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from gentk.recipe import registry
from tests.engine.kills import CASES

ROOT = Path(__file__).parents[2]


def test_every_trainable_method_is_among_them() -> None:
    trainable = {
        f"{task}/{method}"
        for task in registry.tasks()
        for method in registry.methods(task)
        if "train" in registry.recipe_schema(task, method).model_fields
    }
    assert trainable == set(CASES)


def killed(folder: Path, *words: str) -> list[dict[str, Any]]:
    """What tests.engine.kills says, line by line."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.kills", str(folder), *words],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_three_methods_killed_twice_each(tmp_path: Path) -> None:
    only = ["train/denoiser", "train-ebm/pcd", "distill/sim"]
    words = [word for method in only for word in ("--only", method)]
    *rows, total = killed(tmp_path, "--kills", "2", "--seed", "4", *words)
    assert [row["method"] for row in rows] == only
    assert all(row["tensors"] > 0 and row["code"] == 0 and row["differs"] == [] for row in rows)
    assert any(0 < step < 18 for row in rows for step in row["steps"]), "no kill fell between two checkpoints"
    assert total == {"methods": 3, "kills": 6, "wrong": []}


def test_two_processes_killed_together_and_one_of_them_alone(tmp_path: Path) -> None:
    row, total = killed(tmp_path, "--kills", "3", "--seed", "1", "--ranks", "2", "--only", "distill/sim")
    assert (row["kills"], row["alone"], row["code"], row["differs"]) == (3, 2, 0, [])
    assert row["tensors"] > 0
    assert any(0 < step < 18 for step in row["steps"]), "no kill fell between two checkpoints"
    assert total == {"methods": 1, "kills": 3, "wrong": []}
