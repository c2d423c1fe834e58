"""A store of recipes of its own, so that these tests do not hang on the shipped ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gentk.recipe import store

SIM = """\
# One-step digits.
task: distill
about: one-step digits
size: laptop
default: true
paper: arXiv:2410.16794
expect:
  fd_student: {paper: null, ours: 2.5}
teacher: edm-digits
method:
  name: sim
  distance: l2
  noise_generator: {name: karras, t_max: 700}
optim:
  generator: {lr: 1e-4}
  fake: {lr: 2e-4, betas: [0, 0.9]}
train:
  steps: 100
"""

Add = Callable[..., Path]


@pytest.fixture
def sim() -> str:
    return SIM


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Add:
    """Adds a recipe to a store of the test's own, and runs the test in an empty folder beside it."""
    root, work = tmp_path / "recipes", tmp_path / "work"
    root.mkdir()
    work.mkdir()
    monkeypatch.setattr(store, "root", lambda: root)
    monkeypatch.chdir(work)

    def write(name: str = "distill/sim/edm-digits", text: str = SIM) -> Path:
        path = root / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    return write
