"""Published classifiers under PGD: the figures of $GENTK_DATA's README. The whole table: benchmarks/robustness.py."""

from __future__ import annotations

import os

import pytest
import torch

from gentk import data
from gentk.attacks.ball import Ball
from gentk.attacks.pgd import Pgd, pgd, predictions
from gentk.attacks.victim import Undefended
from gentk.nets.image_classifier import pretrained
from gentk.recipe.schema import Data

pytestmark = pytest.mark.skipif("GENTK_DATA" not in os.environ, reason="GENTK_DATA is not set: no weights here")
N = 500
FIGURES = [
    ("mnist_cnn_kw01", "mnist", 0.1, 95.6),
    ("cifar10_cnn_wide_robust", "cifar10", 8 / 255, 24.6),
]


@pytest.mark.parametrize(("name", "split", "eps", "stated"), FIGURES)
def test_pgd_leaves_what_the_source_states(name: str, split: str, eps: float, stated: float) -> None:
    """20 steps of eps / 4 (MNIST: 40 of eps / 10) from a random start, the first 500 test images: within 2 points."""
    held = data.load(Data(name=split), "test")
    assert held.y is not None
    x, y, ids = held.x[:N].float() / 255, held.y[:N], torch.arange(N)
    victim = Undefended(pretrained(name), 10)
    steps, size = (40, eps / 10) if split == "mnist" else (20, eps / 4)
    moved = pgd(victim, x, y, ids, Pgd(Ball("linf", eps), steps, size, chunk=100), seed=0)

    def right(images: torch.Tensor) -> float:
        answers = predictions(victim, images, ids, seed=1, draws=1, chunk=100)
        return 100 * float((answers[:, 0] == y).double().mean())

    assert right(moved) == pytest.approx(stated, abs=2)
    assert right(x) > stated + 2  # control: without the attack it would not be that
