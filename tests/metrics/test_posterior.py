"""Coverage and z-scores of draws: exact for draws and truth of one normal law, wrong for draws that are too narrow."""

from __future__ import annotations

import math

import pytest
import torch

from gentk.metrics.posterior import coverage, mean_and_std, z_rms

N = 20_000


def draws(k: int, width: float = 1.0, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    centre, scale = torch.randn(N, generator=gen), 0.5 + torch.rand(N, generator=gen)
    truth = centre + scale * torch.randn(N, generator=gen)
    own = centre[:, None] + width * scale[:, None] * torch.randn(N, k, generator=gen)
    return truth + shift, own


@pytest.mark.parametrize("k", [2, 4, 16])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_is_its_level_for_every_number_of_draws(k: int, level: float) -> None:
    truth, own = draws(k)
    assert coverage(truth, own, level=level) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / N))


def test_narrow_or_shifted_draws_cover_less() -> None:
    assert coverage(*draws(16, width=0.5)) < 0.65
    assert coverage(*draws(16, shift=2.0)) < 0.7
    assert coverage(*draws(16, width=2.0)) > 0.97


@pytest.mark.parametrize("k", [8, 32])
def test_z_is_one_and_says_by_how_much(k: int) -> None:
    error = 5 * math.sqrt(2 / N) if k > 8 else 0.06  # the fourth moment of Student's t with 7 degrees is large
    assert z_rms(*draws(k)) == pytest.approx(1.0, abs=error)
    assert z_rms(*draws(k, width=0.5)) > 1.5
    assert math.isnan(z_rms(*draws(3)))
    assert math.isnan(z_rms(torch.zeros(5), torch.zeros(5, 8)))


def test_one_draw_has_no_spread() -> None:
    x = torch.randn(3, 1, 4)
    mean, std = mean_and_std(x)
    assert torch.equal(mean, x[:, 0])
    assert torch.equal(std, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="two draws"):
        coverage(mean, x)
    assert coverage(torch.ones(3), torch.ones(3, 5)) == 1.0  # measured without noise, and equal
