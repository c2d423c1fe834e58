"""`gentk evaluate --dry-run` builds what it would measure: what is wrong is said before anything is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from gentk.cli.app import app
from tests.tasks.toys import VE, write_teacher

POINTS = ("--set", "reference={name: 'points:ring8', points: 200}", "--set", "method.features=identity")


def evaluate(*words: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", "fd", *map(str, words), *POINTS, "--dry-run"])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_plan_writes_nothing(tmp_path: Path) -> None:
    model = write_teacher(tmp_path / "m.safetensors", process=VE)
    np.savez(tmp_path / "s.npz", samples=np.zeros((20, 2), np.float32))
    for samples in (model, tmp_path / "s.npz"):
        result = evaluate("--samples", samples, "--out", tmp_path / "run")
        assert result.exit_code == 0, result.stderr
        assert f"fd of {samples} against points:ring8" in result.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"m.safetensors", "s.npz"}


def test_what_is_absent_or_does_not_fit_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", samples=np.zeros((20, 3), np.float32))
    for words, code, said in (
        (("--samples", "no-such-model"), 3, "no model `no-such-model`"),
        (("--samples", tmp_path / "no.npz"), 3, "no such file"),
        (("--samples", tmp_path / "wide.npz"), 2, "samples have shape (3,), `points:ring8` has (2,)"),
        (("--samples", "classifier-digits"), 2, "is a classifier"),
        (("--samples", "no-such-model", "--set", "reference.name=points:ring9"), 2, "unknown target `ring9`"),
    ):
        result = CliRunner().invoke(app, ["evaluate", "fd", *POINTS, *map(str, words), "--dry-run"])
        assert result.exit_code == code, (words, result.stderr)
        assert said in result.stderr
        assert result.stdout == ""
