"""Settings and recipes that tests of several floors share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: bitwise equal runs need the same number of threads

DENOISER = """\
task: train
about: a denoiser of two-dimensional points, small enough for a test
size: smoke
data: {name: "points:ring8", points: 400}
net: {name: mlp, width: 16, blocks: 1}
method: {name: denoiser, label_dropout: 0.1}
optim: {name: adam, lr: 1e-3}
ema: {half_life: 500}
train: {steps: 12, batch: 16, log_every: 4, checkpoint_every: 4}
measure: {features: identity, n: 64, steps: 4, batch: 64}
"""

DISTILL = """\
task: distill
about: a one-step generator of two-dimensional points, small enough for a test
size: smoke
teacher: TEACHER
method: {name: sim}
optim:
  generator: {name: adam, lr: 1e-3, betas: [0.0, 0.999]}
  fake: {name: adam, lr: 1e-3, betas: [0.0, 0.999]}
ema: {half_life: 500}
train: {steps: 6, batch: 16, log_every: 2, checkpoint_every: 2, sample_every: 3}
measure: {features: identity, n: 64, steps: 4, batch: 64}
reference: {name: "points:ring8", points: 400}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a file below the test's folder and returns its path."""

    def _write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return _write
