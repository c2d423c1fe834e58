"""Extrapolation to infinitely many samples: known laws, and what it must not hide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gentk.errors import RunFailed
from gentk.metrics import fd_infinity as module
from gentk.metrics.fd_infinity import fd_infinity
from gentk.metrics.frechet import Moments, frechet

D = 6
TRUTH = Moments.known(10**6, np.zeros(D), np.eye(D))


def draw(n: int, seed: int = 0, at: float = 0.0) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + at


@pytest.mark.parametrize("at", [0.0, 0.2])
def test_the_intercept_is_the_distance_of_the_laws(at: float) -> None:
    """N(at, I) against N(0, I): D at^2, on average over 100 sets of 4000, within 4 standard errors.

    The largest size alone is (D + D (D + 1) / 4) / N too far on average, which 100 sets tell apart with ease.
    """
    expected, bias = D * at**2, (D + D * (D + 1) / 4) / 4000
    fits = [fd_infinity(TRUTH, draw(4000, seed, at), seed=seed) for seed in range(100)]
    values, plain = (np.array(x) - expected for x in ([f.value for f in fits], [f.distances[-1] for f in fits]))
    assert abs(values.mean()) < 4 * values.std() / 10
    assert plain.mean() == pytest.approx(bias, abs=4 * plain.std() / 10)
    if at == 0:
        assert plain.mean() > 8 * plain.std() / 10
        assert abs(values.mean()) < bias / 10
        slopes = np.array([f.slope for f in fits])
        assert slopes.mean() == pytest.approx(4000 * bias, abs=4 * slopes.std() / 10 + 0.1 * 4000 * bias)


def test_sizes_and_distances() -> None:
    """15 evenly spaced sizes from N / 10, 5000 at most, to N; the last distance is that of all samples."""
    x = draw(2000)
    fit = fd_infinity(TRUTH, x)
    assert fit.sizes == tuple(np.linspace(200, 2000, 15).astype(int))
    assert fit.distances[-1] == pytest.approx(frechet(TRUTH, Moments().update(x)), rel=1e-10)
    assert fd_infinity(TRUTH, x, points=4, smallest=500).sizes == (500, 1000, 1500, 2000)
    assert fd_infinity(TRUTH, draw(60_000), points=3).sizes[0] == 5000


def test_the_line_is_least_squares() -> None:
    fit = fd_infinity(TRUTH, draw(1000), points=7)
    x, y = 1 / np.array(fit.sizes), np.array(fit.distances)
    (slope, value), covariance = np.polyfit(x, y, 1, cov=True)
    assert fit.value == pytest.approx(value, rel=1e-9)
    assert fit.slope == pytest.approx(slope, rel=1e-9)
    assert fit.error == pytest.approx(np.sqrt(covariance[1, 1]), rel=1e-9)


def test_the_error_of_a_line_with_noise_is_honest() -> None:
    """y = 1 + 2 x + noise, independent: (intercept - 1) / error is Student's t of 13, of variance 13 / 11."""
    rng = np.random.default_rng(0)
    x = 1 / np.linspace(500, 5000, 15)
    z = []
    for _ in range(2000):
        value, _, error = module._line(x, 1 + 2 * x + 0.1 * rng.normal(size=15))
        z.append((value - 1) / error)
    assert np.var(z) == pytest.approx(13 / 11, rel=4 * (2.7 / 2000) ** 0.5)  # 2.7: var of t^2 over its mean squared


def test_subsets_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(500)
    torch.manual_seed(0)
    first = fd_infinity(TRUTH, x)
    torch.manual_seed(1)
    assert fd_infinity(TRUTH, x) == first
    assert fd_infinity(TRUTH, x, seed=1) != first
    monkeypatch.setattr(module, "_ROWS", 17)
    assert fd_infinity(TRUTH, x).value == pytest.approx(first.value, rel=1e-9)
    permute = torch.randperm
    monkeypatch.setattr(module.torch, "randperm", lambda n, generator: permute(n))  # the control
    assert fd_infinity(TRUTH, x) != fd_infinity(TRUTH, x)


def test_refusals() -> None:
    with pytest.raises(RunFailed, match="15 samples are too few for 15 sizes from 1 on") as failure:
        fd_infinity(TRUTH, draw(15))
    assert "at least 30" in failure.value.hint
    fd_infinity(TRUTH, draw(30))
    with pytest.raises(RunFailed, match="too few for 15 sizes from 995"):
        fd_infinity(TRUTH, draw(1000), smallest=995)
    with pytest.raises(RunFailed, match="dimensions cannot be compared"):
        fd_infinity(TRUTH, draw(100)[:, :2])
    with pytest.raises(RunFailed, match="NaN"):
        fd_infinity(TRUTH, draw(100) * float("nan"))
    with pytest.raises(ValueError, match="2 points"):
        fd_infinity(TRUTH, draw(100), points=2)
