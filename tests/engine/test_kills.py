"""A few random kills over a few methods, each resumed to the weights of the whole run; benchmarks/kills.py has all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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


def test_three_methods_killed_twice_each(tmp_path: Path) -> None:
    only = ["train/denoiser", "train-ebm/pcd", "distill/sim"]
    words = [word for method in only for word in ("--only", method)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.kills", str(tmp_path), "--kills", "2", "--seed", "4", *words],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    *rows, total = (json.loads(line) for line in done.stdout.splitlines())
    assert [row["method"] for row in rows] == only
    assert all(row["tensors"] > 0 and row["code"] == 0 and row["differs"] == [] for row in rows)
    assert any(0 < step < 18 for row in rows for step in row["steps"]), "no kill fell between two checkpoints"
    assert total == {"methods": 3, "kills": 6, "wrong": []}
