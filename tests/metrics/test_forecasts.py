"""CRPS against closed forms, its integral over quantiles and brute force; the quantile loss by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gentk.errors import RunFailed
from gentk.metrics.forecasts import LEVELS, crps, crps_sum, weighted_quantile_loss

F64 = torch.float64


def test_crps_of_small_ensembles_by_hand() -> None:
    """{0, 2} for 1: E|X - y| = 1, E|X - X'| = 1, so 1/2; one path: the absolute error. A random one by all pairs."""
    assert float(crps(torch.tensor([0.0, 2.0]), torch.tensor(1.0))) == 0.5
    assert float(crps(torch.tensor([3.0]), torch.tensor(-1.5))) == 4.5
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, 2, generator=gen, dtype=F64), torch.randn(3, 2, generator=gen, dtype=F64)
    pairs = (x[:, None] - x[None]).abs().mean((0, 1))
    torch.testing.assert_close(crps(x, y), (x - y).abs().mean(0) - 0.5 * pairs, rtol=1e-12, atol=1e-14)
    assert float((crps(x, y) - (x - y).abs().mean(0)).abs().max()) > 0.1  # without the second term


@pytest.mark.parametrize("y", [-1.3, 0.0, 0.4, 2.5])
def test_crps_of_the_normal_law(y: float) -> None:
    """Quantile midpoints of N(0, 1), 4,000 of them, against y (2 Phi(y) - 1) + 2 phi(y) - 1 / sqrt(pi) (Gneiting)."""
    q = (torch.arange(4000, dtype=F64) + 0.5) / 4000
    x = math.sqrt(2) * torch.erfinv(2 * q - 1)
    phi = math.exp(-y * y / 2) / math.sqrt(2 * math.pi)
    exact = y * math.erf(y / math.sqrt(2)) + 2 * phi - 1 / math.sqrt(math.pi)
    assert float(crps(x, torch.tensor(y, dtype=F64))) == pytest.approx(exact, abs=1e-3)


def test_the_quantile_loss_is_the_crps_where_the_levels_are_many() -> None:
    """2 integral of the pinball loss over all levels is the CRPS: 2,000 levels, 1e-3 of the scale; 19 are near it."""
    gen = torch.Generator().manual_seed(1)
    x, y = torch.randn(501, 40, generator=gen, dtype=F64), torch.randn(40, generator=gen, dtype=F64)
    exact = float(crps(x, y).sum() / y.abs().sum())
    many = tuple((k + 0.5) / 2000 for k in range(2000))
    assert weighted_quantile_loss(x, y, many) == pytest.approx(exact, rel=3e-3)
    assert weighted_quantile_loss(x, y) == pytest.approx(exact, rel=0.1)
    assert pytest.approx([0.05 * k for k in range(1, 20)]) == LEVELS


def test_the_quantile_loss_by_hand() -> None:
    """One path at 3 for 1 and 2 for 4: at level q, 2 (2 (1 - q) + 2 q) / 5 = 4/5 whatever q."""
    x, y = torch.tensor([[3.0, 2.0]]), torch.tensor([1.0, 4.0])
    assert weighted_quantile_loss(x, y) == pytest.approx(0.8)
    assert weighted_quantile_loss(x[:, :1], y[:1], (0.25,)) == pytest.approx(3.0)
    assert weighted_quantile_loss(x[:, 1:], y[1:], (0.25,)) == pytest.approx(0.25)


def test_the_sum_needs_the_joint_law() -> None:
    """Two series that cancel: the joint paths say so, the same margins in another order do not."""
    gen = torch.Generator().manual_seed(2)
    noise = torch.randn(400, 30, generator=gen, dtype=F64)
    truth = torch.stack([torch.randn(30, generator=gen, dtype=F64)] * 2, -1) * torch.tensor([1.0, -1.0]) + 1
    joint = torch.stack([noise, -noise], -1) + 1
    shuffled = torch.stack([noise, -noise[torch.randperm(400, generator=gen)]], -1) + 1
    assert crps_sum(joint, truth) < 1e-6
    assert crps_sum(shuffled, truth) > 0.05
    assert weighted_quantile_loss(joint, truth) == pytest.approx(weighted_quantile_loss(shuffled, truth), rel=1e-9)


def test_what_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="not samples"):
        crps(torch.zeros(5, 3), torch.zeros(4))
    with pytest.raises(RunFailed, match="finite"):
        crps(torch.tensor([math.nan]), torch.tensor(0.0))
    with pytest.raises(RunFailed, match="is 0"):
        weighted_quantile_loss(torch.ones(5, 3), torch.zeros(3))
