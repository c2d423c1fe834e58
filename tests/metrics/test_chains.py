"""Effective sample size and split R-hat: autoregressions of known correlation time, and what must be caught."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from gentk.errors import RunFailed
from gentk.metrics.chains import effective_sample_size, split_r_hat


def autoregression(rho, steps, chains, seed=0):
    """Stationary x' = rho x + sqrt(1 - rho^2) xi, variance 1: (steps, chains) float64."""
    xi = np.random.default_rng(seed).standard_normal((steps, chains))
    xi[1:] *= (1 - rho**2) ** 0.5
    return torch.from_numpy(lfilter([1.0], [1.0, -rho], xi, axis=0))


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
def test_an_autoregression_has_its_known_size(rho):
    """n T (1 - rho) / (1 + rho), independent draws count in full.

    A correlation time summed over w lags has the relative variance 2 (2 w + 1) / n T (Sokal 1997); Geyer's sum ends
    where |rho|^w meets the noise of its terms, about sqrt(tau / n T). Five standard errors of that: 0.6 to 5 %.
    """
    steps, chains = 10_000, 256
    total, tau = steps * chains, (1 + rho) / (1 - rho)
    w = 0.5 * math.log(tau / total) / math.log(abs(rho)) if rho else 1
    band = 5 * (2 * (2 * w + 1) / total) ** 0.5
    assert 0.005 < band < 0.05
    assert effective_sample_size(autoregression(rho, steps, chains)).item() == pytest.approx(total / tau, rel=band)


@pytest.mark.parametrize("rho", [-0.5, 0.9])
def test_the_size_foretells_the_error_of_the_mean(rho):
    """The variance of 2000 means of 4 chains each, times the mean size, is the variance of a draw, 1.

    The variance is known to sqrt(2 / 2000) = 3 %; a size from only 4 x 1000 draws has a small bias of its own.
    """
    x = autoregression(rho, 1000, 8000).reshape(1000, 4, 2000)
    size = effective_sample_size(x)
    assert size.shape == (2000,)
    assert x.mean((0, 1)).var() * size.mean() == pytest.approx(1, abs=5 * 0.032)


def test_both_agree_with_arviz():
    """Values of ArviZ 0.23.4, ess(method="mean") and rhat(method="split"), for numpy's PCG64 with these seeds."""
    known = {
        (0.0, 8, 2, 6): (19.265919722494797, 1.0116092327718995),
        (0.3, 11, 3, 7): (18.08329137345074, 1.2207374480910038),
        (0.5, 400, 4, 1): (594.4777167108874, 1.0080435677121977),
        (0.9, 1001, 8, 2): (416.44612014297076, 1.0179756957103343),
        (-0.3, 300, 4, 3): (2246.893174014284, 0.9986559532962435),
        (-0.95, 800, 2, 4): (5126.59197224948, 0.9987523860225185),
        (0.99, 2000, 6, 5): (47.554597386537985, 1.0906282926841862),
    }
    for (rho, steps, chains, seed), (size, r_hat) in known.items():
        x = autoregression(rho, steps, chains, seed)
        assert effective_sample_size(x).item() == pytest.approx(size, rel=1e-11)
        assert split_r_hat(x).item() == pytest.approx(r_hat, rel=1e-11)


def test_r_hat_of_the_formula():
    """By hand from means and variances of the halves, an odd number of draws losing the middle one."""
    x = autoregression(0.0, 9, 2)
    parts = [x[:4, 0], x[5:, 0], x[:4, 1], x[5:, 1]]
    means, variances = torch.stack([p.mean() for p in parts]), torch.stack([p.var() for p in parts])
    between, within = 4 * means.var(), variances.mean()
    want = ((3 / 4 * within + between / 4) / within).sqrt()
    assert split_r_hat(x).item() == pytest.approx(want.item(), rel=1e-13)


def test_chains_that_differ_or_drift_are_seen():
    x = autoregression(0.5, 1000, 4)
    assert split_r_hat(x).item() == pytest.approx(1, abs=0.01)
    apart = x + 5 * torch.arange(4.0)
    assert split_r_hat(apart) > 4
    assert effective_sample_size(apart) < 8
    # All chains drift together: only the split sees it. Unsplit, the means agree.
    drifting = x + torch.linspace(-3, 3, 1000).double()[:, None]
    assert split_r_hat(drifting) > 1.5
    whole = (drifting.var(0).mean() + drifting.mean(0).var()) / drifting.var(0).mean()
    assert whole.sqrt() < 1.01


def test_one_chain_is_judged_by_its_halves():
    x = autoregression(0.0, 4000, 1)
    assert split_r_hat(x).item() == pytest.approx(1, abs=0.01)
    assert effective_sample_size(x).item() == pytest.approx(4000, rel=0.2)


def test_standing_and_alternating_chains():
    """Different constants: R-hat infinite and next to no draws; one constant: NaN; +-1 in turns: the stated bound."""
    apart = torch.arange(3.0).expand(50, 3)
    assert split_r_hat(apart) == math.inf
    assert effective_sample_size(apart) < 6
    assert split_r_hat(torch.ones(50, 3)).isnan()
    assert effective_sample_size(torch.ones(50, 3)).isnan()
    swing = (torch.arange(400) % 2 * 2.0 - 1)[:, None].expand(400, 2)
    assert effective_sample_size(swing).item() == pytest.approx(800 * math.log10(800), rel=1e-12)


@pytest.mark.parametrize("measure", [effective_sample_size, split_r_hat])
def test_coordinates_are_judged_one_by_one(measure):
    """(T, n, 2, 3) -> (2, 3), each as alone; the scale and the origin do not matter."""
    x = torch.stack([autoregression(0.15 * k, 300, 5, seed=k) for k in range(6)], 2).reshape(300, 5, 2, 3)
    got = measure(x)
    assert got.shape == (2, 3)
    assert got.dtype == torch.float64
    alone = torch.tensor([[measure(x[:, :, i, j]).item() for j in range(3)] for i in range(2)])
    torch.testing.assert_close(got, alone.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(measure(3 * x - 7), got, rtol=1e-9, atol=0)
    torch.testing.assert_close(measure(x.float()), got, rtol=1e-4, atol=0)


@pytest.mark.parametrize("measure", [effective_sample_size, split_r_hat])
def test_faults_are_named(measure):
    with pytest.raises(RunFailed, match="7 draws"):
        measure(autoregression(0.0, 7, 3))
    with pytest.raises(RunFailed, match="NaN"):
        measure(torch.full((10, 2), math.nan))
    with pytest.raises(ValueError, match="expected"):
        measure(torch.zeros(10))
