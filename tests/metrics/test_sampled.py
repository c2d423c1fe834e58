"""Measures of a sampler: what they must see and must not of two Gaussians eight deviations apart."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gentk import targets
from gentk.losses.implicit import score_of
from gentk.metrics import sampled
from gentk.metrics.points import ksd
from gentk.metrics.reference import Reference, chained

N = 1000


def mog(n: int, seed: int, left: float = 0.5, std: float = 1.0, shift: float = 0.0) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    side = torch.where(torch.rand(n, generator=gen) < left, -4.0, 4.0)
    return std * torch.randn(n, 2, generator=gen) + torch.stack((side + shift, torch.zeros(n)), 1)


def figures(x: Tensor) -> dict[str, bool]:
    """Which measures see a defect: beyond their null bands, KSD beyond three standard errors."""
    y, other = mog(N, 101), mog(N, 102)
    target = targets.find("mog2")
    assert target.log_prob is not None
    stein = ksd(x, score_of(target.log_prob)(x))
    mmd, sw2 = sampled.mmd(x, y, other), sampled.sliced(x, y, other)
    mass = sampled.masses(x, y, torch.tensor([[-4.0, 0.0], [4.0, 0.0]]))
    return {
        "ksd": stein.value > 3 * stein.error,
        "mmd": mmd.value > 1.5 * mmd.null,
        "sw2": sw2.value > 1.5 * sw2.null,
        "mass": mass.error > 1.5 * mass.null,
    }


def test_s7_weights_and_lost_modes_are_seen_by_mmd_transport_and_masses_and_not_by_stein() -> None:
    for left in (0.9, 1.0):
        assert figures(mog(N, 1, left=left)) == {"ksd": False, "mmd": True, "sw2": True, "mass": True}


@pytest.mark.parametrize("defect", [{"std": 0.7}, {"std": 1.3}, {"shift": 0.5}])
def test_widths_and_shifts_are_seen_by_stein_too(defect: dict[str, float]) -> None:
    found = figures(mog(N, 1, **defect))
    assert found["ksd"]
    assert found["mmd"]
    assert not found["mass"]


def test_nothing_is_seen_where_nothing_is_wrong() -> None:
    assert figures(mog(N, 1)) == {"ksd": False, "mmd": False, "sw2": False, "mass": False}


def test_mmd_is_the_mean_over_widths_of_the_unbiased_estimate() -> None:
    x, y = mog(60, 1), mog(60, 2, left=0.8)
    width = float(torch.pdist(torch.cat([y, mog(60, 3)]).double()).median())

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        d = torch.cdist(a.double(), b.double()).square()
        return torch.stack([(-d / (2 * (w * width) ** 2)).exp() for w in sampled.WIDTHS]).mean(0)

    def off(k: Tensor) -> Tensor:
        return (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))

    exact = off(kernel(x, x)) + off(kernel(y, y)) - 2 * kernel(x, y).mean()
    assert sampled.mmd(x, y, mog(60, 3)).value == pytest.approx(float(exact), abs=1e-6)


def test_null_bands_hold_their_level() -> None:
    """Of 60 fresh sets of exact draws some 5 % lie beyond: 12 would be a chance of 1e-5."""
    beyond = {"mmd": 0, "sw2": 0, "mass": 0}
    for seed in range(60):
        x, y, other = (mog(200, 10 * seed + k + 1) for k in range(3))
        mmd, sw2 = sampled.mmd(x, y, other), sampled.sliced(x, y, other, directions=20)
        mass = sampled.masses(x, y, torch.tensor([[-4.0, 0.0], [4.0, 0.0]]))
        beyond["mmd"] += mmd.value > mmd.null
        beyond["sw2"] += sw2.value > sw2.null
        beyond["mass"] += mass.error > mass.null
    assert all(count < 12 for count in beyond.values())


def test_moments_and_orthants() -> None:
    gen = torch.Generator().manual_seed(0)
    y = torch.randn(20_000, 3, generator=gen) * torch.tensor([1.0, 2.0, 3.0])
    x = torch.randn(20_000, 3, generator=gen) * torch.tensor([1.0, 1.0, 3.0]) + torch.tensor([0.5, 0.0, 0.0])
    found = sampled.moments(x, y)
    torch.testing.assert_close(found.shift, torch.tensor([0.5, 0.0, 0.0]).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(found.ratio, torch.tensor([1.0, 0.5, 1.0]).double(), atol=0.03, rtol=0)
    mass = sampled.masses(x, y, None)
    assert mass.theirs.tolist() == pytest.approx([0.25] * 4, abs=0.02)
    assert mass.error > mass.null, "half of the mass has moved across the median"


def test_acceptance_tells_draws_that_are_off_from_draws_of_the_target() -> None:
    def log_prob(x: Tensor) -> Tensor:
        return -x.square().sum(1) / 2

    gen = torch.Generator().manual_seed(0)
    noise: Callable[[Tensor], Tensor] = lambda x: torch.randn(x.shape, generator=gen)  # noqa: E731
    y = torch.randn(4000, 5, generator=gen)
    size = sampled.tuned(log_prob, y, noise)
    assert sampled.acceptance(log_prob, y, size, noise) == pytest.approx(0.574, abs=0.03)
    assert sampled.acceptance(log_prob, 0.5 * y, size, noise) < 0.5, "too narrow: proposals lie too far out"


def test_s17_break_even_counts_the_training_and_never_comes_where_nothing_is_gained() -> None:
    assert sampled.break_even(10.0, 0.0011, 0.0001) == pytest.approx(10_000)
    assert sampled.break_even(10.0, 0.1, 0.2) == math.inf


def test_s18_a_reference_that_has_not_converged_says_so() -> None:
    gaussian = targets.find("gaussian").log_prob
    assert gaussian is not None
    found = chained(gaussian, lambda y: y, 2, gen=torch.Generator().manual_seed(0), chains_=32, length=150, warmup=150)
    assert found.converged
    assert found.r_hat < 1.01
    assert found.ess > 400
    draws = found.draws.double()
    error = draws.std(0) / found.ess**0.5
    assert ((draws.mean(0) - torch.tensor([0.5, -0.3])).abs() < 5 * error).all()
    assert draws.std(0).tolist() == pytest.approx([1.0, 0.5], rel=0.1)
    far = targets.find("mog2").log_prob
    assert far is not None
    stuck = chained(
        far, lambda y: y, 2, gen=torch.Generator().manual_seed(0), chains_=16, length=60, warmup=60, rounds=1, start=4.0
    )
    assert not stuck.converged, "chains in two modes eight deviations apart do not agree"
    assert Reference(draws, "exact").converged
