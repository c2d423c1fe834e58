"""The inception score of predictions whose score is known."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from gentk.errors import RunFailed
from gentk.metrics.inception_score import InceptionScore, inception_score, inception_score_of


def dirichlet(n: int, classes: int) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(classes, 0.3), n)


def by_definition(p: np.ndarray, splits: int) -> np.ndarray:
    """exp E KL(p(c | x) || p(c)) of each split, by SciPy."""
    ends = [i * len(p) // splits for i in range(splits + 1)]
    parts = [p[a:b] for a, b in pairwise(ends)]
    return np.array([np.exp(np.mean([entropy(row, part.mean(0)) for row in part])) for part in parts])


def test_constant_predictions_score_one() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).expand(100, 3)
    found = inception_score_of(p)
    assert found.mean == pytest.approx(1, abs=1e-14)
    assert found.std == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("classes", [2, 10, 1008])
def test_certain_and_even_predictions_score_the_number_of_classes(classes: int) -> None:
    certain = torch.eye(classes).repeat(4, 1)
    assert inception_score_of(certain, splits=2).mean == pytest.approx(classes, rel=1e-12)
    assert inception_score(1e4 * certain, splits=2).mean == pytest.approx(classes, rel=1e-12)


def test_two_classes_in_closed_form() -> None:
    """(a, 1 - a) and (1 - a, a) in turns: exp(ln 2 - H(a))."""
    a = 0.8
    p = torch.tensor([[a, 1 - a], [1 - a, a]], dtype=torch.float64).repeat(50, 1)
    expected = 2 * a**a * (1 - a) ** (1 - a)
    assert inception_score_of(p).mean == pytest.approx(expected, rel=1e-14)
    assert inception_score(p.log()).mean == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("n", "splits"), [(1000, 10), (103, 10), (7, 7), (50, 1)])
def test_against_the_definition(n: int, splits: int) -> None:
    p = dirichlet(n, 12)
    scores = by_definition(p, splits)
    found = inception_score_of(torch.from_numpy(p), splits=splits)
    assert found.mean == pytest.approx(scores.mean(), rel=1e-12)
    assert found.std == pytest.approx(scores.std(), rel=1e-9, abs=1e-12)  # over their number, not one less
    if n == 1000:
        assert abs(scores.std(ddof=1) - found.std) > 0.01 * found.std
        assert abs(by_definition(p, 1)[0] - found.mean) > 0.01, "the control: no splits is another figure"


def test_logits_are_shift_free_and_float32_will_do() -> None:
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(0)) * 3
    found = inception_score(logits)
    assert inception_score(logits + 5000.0).mean == pytest.approx(found.mean, rel=1e-3)  # float32 holds 5000 to 2e-4
    assert inception_score(logits.double() + 5000.0).mean == pytest.approx(found.mean, rel=1e-10)
    assert inception_score_of(logits.double().softmax(1)) == found
    assert inception_score_of(logits.softmax(1)).mean == pytest.approx(found.mean, rel=1e-6)


def test_splits_are_taken_in_order() -> None:
    """Sorted by class each of 10 splits sees one class and scores 1; in turns all ten."""
    certain = torch.eye(10)
    assert inception_score_of(certain.repeat_interleave(20, 0)) == InceptionScore(1, 0, (1.0,) * 10)
    assert inception_score_of(certain.repeat(20, 1)).mean == pytest.approx(10, rel=1e-12)


def test_refusals() -> None:
    with pytest.raises(RunFailed, match="9 samples are too few for 10 splits"):
        inception_score(torch.zeros(9, 3))
    with pytest.raises(RunFailed, match="NaN"):
        inception_score(torch.full((20, 3), math.nan))
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    for wrong in (logits, logits.abs(), logits.softmax(0)):
        with pytest.raises(RunFailed, match="no probabilities") as failure:
            inception_score_of(wrong)
        assert "inception_score" in failure.value.hint
    with pytest.raises(ValueError, match="expected"):
        inception_score(torch.zeros(9))
    with pytest.raises(ValueError, match="0 splits"):
        inception_score(torch.zeros(9, 3), splits=0)
