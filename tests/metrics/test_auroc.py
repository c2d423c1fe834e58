"""AUROC against counting pairs, scikit-learn, and its interval against repetition."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from gentk.metrics.auroc import auroc


def test_it_counts_pairs_and_halves_ties() -> None:
    inside, outside = torch.tensor([1.0, 2.0, 3.0, 3.0]), torch.tensor([3.0, 4.0, 0.0])
    pairs = [1.0 if b > a else 0.5 if b == a else 0.0 for a in inside.tolist() for b in outside.tolist()]
    assert auroc(inside, outside).area == pytest.approx(sum(pairs) / len(pairs))
    assert auroc(outside, inside).area == pytest.approx(1 - sum(pairs) / len(pairs)), "the sign matters"


def test_it_is_scikit_learn_s() -> None:
    gen = torch.Generator().manual_seed(0)
    inside, outside = (
        torch.randn(300, generator=gen).round(decimals=1),
        torch.randn(200, generator=gen).round(decimals=1) + 0.5,
    )
    truth = [0] * 300 + [1] * 200
    expected = roc_auc_score(truth, torch.cat([inside, outside]).numpy())
    assert auroc(inside, outside).area == pytest.approx(expected, abs=1e-12)


def test_the_interval_holds_the_truth_nineteen_times_in_twenty() -> None:
    """N(0, 1) against N(1, 1): the area is Phi(1 / sqrt(2)). 400 repetitions: 95 % within four standard errors."""
    gen, truth = torch.Generator().manual_seed(1), 0.5 * (1 + math.erf(0.5))
    found = [auroc(torch.randn(60, generator=gen), 1 + torch.randn(80, generator=gen)) for _ in range(400)]
    share = sum(each.low <= truth <= each.high for each in found) / 400
    assert abs(share - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 400)
    spread = torch.tensor([each.area for each in found]).std()
    assert float(torch.tensor([each.error for each in found]).mean()) == pytest.approx(float(spread), rel=0.15)


def test_ends_and_bad_input() -> None:
    apart = auroc(torch.zeros(100), torch.ones(50))
    assert (apart.area, apart.low, apart.high) == (1.0, pytest.approx(1 - 3 / 50), 1.0)
    assert auroc(torch.ones(10), torch.zeros(10)).area == 0
    for bad in (torch.tensor([1.0]), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="two scores"):
            auroc(bad, torch.ones(3))
