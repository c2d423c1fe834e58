"""MMD and KID: closed forms, no bias, honest errors, and the mistakes that must show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gentk.errors import RunFailed
from gentk.metrics import neighbours
from gentk.metrics.kernel import cubic, kid, mmd_squared

F64 = torch.float64


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=F64)


def brute(x: np.ndarray, y: np.ndarray, *, biased: bool = False) -> float:
    """One pair at a time; `biased` is the mistake of counting k(x_i, x_i)."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    def within(z: np.ndarray) -> float:
        return float(np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if biased or i != j]))

    return within(x) + within(y) - 2 * float(np.mean([k(a, b) for a in x for b in y]))


def population(mean_x: np.ndarray, cov_x: np.ndarray, mean_y: np.ndarray, cov_y: np.ndarray) -> float:
    """MMD^2 of two Gaussians for the kernel (x.y / d + 1)^3 = sum_r C(3, r) (x.y / d)^r.

    E (x.y)^r over independent x, y is the product of their tensors of r-th moments; so the distance is
    sum_r C(3, r) |M_r(x) - M_r(y)|^2 / d^r.
    """

    def moments(m: np.ndarray, s: np.ndarray) -> list[np.ndarray]:
        mixed = np.einsum("ij,k->ijk", s, m)
        third = np.einsum("i,j,k->ijk", m, m, m) + mixed + mixed.transpose(0, 2, 1) + mixed.transpose(2, 0, 1)
        return [m, s + np.outer(m, m), third]

    pairs = zip(moments(mean_x, cov_x), moments(mean_y, cov_y), strict=True)
    return sum(math.comb(3, r) * float(((a - b) ** 2).sum()) / len(mean_x) ** r for r, (a, b) in enumerate(pairs, 1))


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 11), (2, 3)])
def test_against_brute_force(n: int, m: int) -> None:
    x, y = draw(n, 4), draw(m, 4, seed=1) + 0.5
    assert mmd_squared(x, y, cubic).value == pytest.approx(brute(x.numpy(), y.numpy()), rel=1e-12)


def test_kid_of_one_whole_subset_is_the_unbiased_distance_in_any_order() -> None:
    """The formula of StyleGAN and clean-fid, [(Kxx + Kyy off the diagonals) / (m - 1) - 2 Kxy / m] / m."""
    x, y = draw(60, 8), draw(60, 8, seed=1) * 1.2
    k = {a + b: (p @ q.T / 8 + 1) ** 3 for a, p in (("x", x), ("y", y)) for b, q in (("x", x), ("y", y))}
    off = sum(k[s].sum() - k[s].diagonal().sum() for s in ("xx", "yy"))
    expected = float((off / 59 - 2 * k["xy"].sum() / 60) / 60)
    found = kid(x, y, subsets=3, size=60)
    assert found.mean == pytest.approx(expected, rel=1e-12)
    assert found.std < 1e-14
    assert math.isnan(found.error), "three times the same says nothing about the error"
    assert math.isnan(kid(x, y, subsets=1, size=30).error)


def test_torchmetrics_computes_the_same() -> None:
    theirs = pytest.importorskip("torchmetrics.image.kid")
    x, y = draw(100, 16), draw(100, 16, seed=1) + 0.3
    assert mmd_squared(x, y, cubic).value == pytest.approx(float(theirs.poly_mmd(x, y)), rel=1e-11)


def test_one_dimensional_gaussians_in_closed_form() -> None:
    """N(m, s^2) has moments m, m^2 + s^2, m^3 + 3 m s^2; weights 3, 3, 1 of their squared differences."""
    m, s = 0.5, 1.3
    expected = 3 * m**2 + 3 * (m**2 + s**2 - 1) ** 2 + (m**3 + 3 * m * s**2) ** 2
    one = np.ones((1, 1))
    assert population(0 * one[0], one, m * one[0], s**2 * one) == pytest.approx(expected, rel=1e-14)
    x, y = draw(4000, 1), m + s * draw(4000, 1, seed=1)
    found = mmd_squared(x, y, cubic)
    assert abs(found.value - expected) < 4 * found.error < expected / 2


def test_kid_has_no_bias() -> None:
    """The mean over 400 data sets of 30 samples is the closed form, within 4 standard errors of that mean.

    The control, with the diagonals, adds (E k(x, x) - E k(x, x')) / m of each law: hundreds of standard errors.
    """
    d, n, repeats = 3, 30, 400
    root = np.array([[1.0, 0, 0], [0.5, 0.8, 0], [-0.2, 0.1, 0.6]])
    shift = np.array([0.3, -0.2, 0.1])
    for mean, factor in ((np.zeros(d), np.eye(d)), (shift, root)):
        expected = population(np.zeros(d), np.eye(d), mean, factor @ factor.T)
        found, biased = [], []
        for i in range(repeats):
            x, z = draw(n, d, seed=2 * i), draw(n, d, seed=2 * i + 1)
            y = z @ torch.from_numpy(factor).T + torch.from_numpy(mean)
            found.append(kid(x, y, subsets=4, size=20, seed=i).mean)
            k = [next(cubic(a, b)).mean() for a, b in ((x, x), (y, y), (x, y))]
            biased.append(float(k[0] + k[1] - 2 * k[2]))
        error = np.std(found) / math.sqrt(repeats)
        assert abs(np.mean(found) - expected) < 4 * error
        assert np.mean(biased) - expected > 5 * np.std(biased) / math.sqrt(repeats)
        if expected == 0:
            assert abs(expected) < 1e-14
            assert min(found) < 0 < min(biased), "what has no bias is at times negative"


def test_the_errors_are_honest() -> None:
    """Over 150 data sets of different laws the root mean square of the errors is the spread of the figures.

    That spread is known to 1 / sqrt(300) = 6 % for a normal law, the tails of a cubic kernel make it some 10 %. The
    control: the spread of 50 overlapping subsets over sqrt(50) claims less than 60 % of the truth.
    """
    repeats = 150
    subsets, whole = [], []
    for i in range(repeats):
        x, y = draw(200, 2, seed=2 * i), draw(200, 2, seed=2 * i + 1) + 0.5
        subsets.append(kid(x, y, subsets=50, size=50, seed=i))
        whole.append(mmd_squared(x, y, cubic))
    assert rms([f.error for f in subsets]) == pytest.approx(np.std([f.mean for f in subsets]), rel=0.25)
    assert rms([f.error for f in whole]) == pytest.approx(np.std([f.value for f in whole]), rel=0.25)
    assert rms([f.std for f in subsets]) / 50**0.5 < 0.6 * np.std([f.mean for f in subsets])


def rms(values: list[float]) -> float:
    return math.sqrt(np.mean(np.square(values)))


def test_subsets_are_seeded() -> None:
    x, y = draw(100, 4), draw(120, 4, seed=1)

    def unseeded() -> float:  # the control
        a, b = (z[torch.randperm(len(z))[:20]] for z in (x, y))
        return mmd_squared(a, b, cubic).value

    torch.manual_seed(0)
    first, other = kid(x, y, subsets=5, size=20), unseeded()
    torch.manual_seed(1)
    assert kid(x, y, subsets=5, size=20) == first
    assert unseeded() != other
    assert kid(x, y, subsets=5, size=20, seed=1) != first
    assert (first.subsets, first.size) == (5, 20)


def test_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(50, 3), draw(33, 3, seed=1)
    whole = mmd_squared(x, y, cubic)
    for block in (1, 100, 170):
        monkeypatch.setattr(neighbours, "_BLOCK", block)
        assert mmd_squared(x, y, cubic) == pytest.approx(whole, rel=1e-11)


def test_refusals() -> None:
    with pytest.raises(RunFailed, match="999 samples are too few for subsets of 1000") as failure:
        kid(draw(2000, 2), draw(999, 2))
    assert "499 or less" in failure.value.hint
    with pytest.raises(RunFailed, match="1 samples are too few"):
        mmd_squared(draw(1, 2), draw(5, 2), cubic)
    with pytest.raises(RunFailed, match="3 and 2 dimensions"):
        kid(draw(10, 3), draw(10, 2), size=5)
    with pytest.raises(RunFailed, match="NaN"):
        kid(draw(10, 3), draw(10, 3) * math.nan, size=5)
    for wrong in ({"size": 1}, {"subsets": 0}):
        with pytest.raises(ValueError, match="expected at least 1 of 2"):
            kid(draw(10, 3), draw(10, 3), **wrong)
