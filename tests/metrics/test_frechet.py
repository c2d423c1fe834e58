from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from gentk.errors import RunFailed
from gentk.metrics import frechet as module
from gentk.metrics.frechet import Moments, frechet, frechet_of, frechet_to

SHARED = os.environ.get("GENTK_DATA")
on_real_data = pytest.mark.skipif(not SHARED, reason="GENTK_DATA is not set: no reference statistics here")
ROOT_EPS = math.sqrt(np.finfo(np.float64).eps)  # what rounding leaves of an eigenvalue 0 after the root
RNG = np.random.default_rng(0)


def covariance(d: int) -> np.ndarray:
    a = RNG.normal(size=(d, 2 * d))
    return a @ a.T / d


def gaussian(mean: np.ndarray, cov: np.ndarray) -> Moments:
    return Moments.known(1000, mean, cov)


def test_commuting_covariances() -> None:
    a, b, m, n = RNG.uniform(0.1, 4, (4, 12))
    q = np.linalg.qr(RNG.normal(size=(12, 12)))[0]
    expected = ((m - n) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet(gaussian(m, q * a @ q.T), gaussian(n, q * b @ q.T)) == pytest.approx(expected, rel=1e-12)


def test_two_by_two_by_hand() -> None:
    s1, s2 = np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    # tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for 2 x 2, here tr S1 S2 = 4, det S1 S2 = 2.75, and tr S1 + tr S2 = 7
    expected = 7 - 2 * math.sqrt(4 + 2 * math.sqrt(2.75))
    assert frechet(gaussian(np.zeros(2), s1), gaussian(np.zeros(2), s2)) == pytest.approx(expected, rel=1e-12)


def test_against_the_matrix_square_root() -> None:
    s1, s2 = covariance(40), covariance(40)
    expected = np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    a, b = gaussian(np.zeros(40), s1), gaussian(np.zeros(40), s2)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9) == frechet(b, a)
    # The control: `eigvalsh` reads one triangle of S1 S2, which is not symmetric, and is far off.
    wrong = np.trace(s1 + s2) - 2 * np.sqrt(np.linalg.eigvalsh(s1 @ s2).clip(0)).sum()
    assert abs(wrong - expected) > 0.01 * expected


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3], [500], [10, 10, 990]])
def test_batches_give_what_one_pass_gives(cuts: list[int]) -> None:
    # A mean a thousand deviations away, where E[x^2] - E[x]^2 would lose six digits.
    x = RNG.normal(size=(1000, 5)) + 1000
    streamed = Moments()
    for part in np.split(x, cuts):
        streamed.update(torch.from_numpy(part))
    assert streamed.n == 1000
    np.testing.assert_allclose(streamed.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(streamed.covariance, np.cov(x.T), rtol=1e-10, atol=1e-12)


def test_merge_takes_in_and_leaves_the_other_alone() -> None:
    x, y = RNG.normal(size=(30, 4)), RNG.normal(size=(50, 4)) + 3
    a, b, empty = Moments().update(x), Moments().update(y), Moments()
    assert empty.merge(a) is empty
    assert empty.merge(Moments()).n == 30
    empty.merge(b)
    np.testing.assert_allclose(empty.covariance, np.cov(np.concatenate([x, y]).T), rtol=1e-12)
    assert a.n == 30
    assert b.n == 50
    np.testing.assert_allclose(a.covariance, np.cov(x.T), rtol=1e-12)


def test_float32_and_grad_features_are_welcome() -> None:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    np.testing.assert_allclose(Moments().update(x).covariance, np.cov(x.detach().double().numpy().T), rtol=1e-12)


def test_fewer_samples_than_dimensions() -> None:
    x, y = RNG.normal(size=(8, 30)), RNG.normal(size=(9, 30))
    a, b = Moments().update(x), Moments().update(y)
    # tr (S1 S2)^(1/2) is the nuclear norm of A B^T where S1 = A^T A and S2 = B^T B: no root of a small number.
    left, right = (x - x.mean(0)) / math.sqrt(7), (y - y.mean(0)) / math.sqrt(8)
    cross = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (left**2).sum() + (right**2).sum() - 2 * cross
    scale = math.sqrt(np.linalg.norm(a.covariance, 2) * np.linalg.norm(b.covariance, 2))
    assert abs(frechet(a, b) - expected) < 2 * 30 * ROOT_EPS * scale
    assert 0 <= frechet(a, a) < 2 * 30 * ROOT_EPS * scale * 2


def test_three_roads_to_the_trace_of_the_root() -> None:
    """Ours, Schur's root of S1 S2 (SciPy), and the roots of its eigenvalues; one root serves many distances."""
    s1, s2 = covariance(96), covariance(96)
    shift, traces = RNG.normal(size=96), np.trace(s1 + s2)
    expected = (shift**2).sum() + traces
    by_root = expected - 2 * np.trace(scipy.linalg.sqrtm(s1 @ s2).real)
    by_eigenvalues = expected - 2 * np.sqrt(np.linalg.eigvals(s1 @ s2)).real.sum()
    a, b = gaussian(shift, s1), gaussian(np.zeros(96), s2)
    assert frechet(a, b) == pytest.approx(by_root, rel=1e-11) == pytest.approx(by_eigenvalues, rel=1e-11)
    to_a = frechet_to(a)
    assert (to_a(b), to_a(a)) == (frechet(a, b), frechet(a, a))


@pytest.mark.parametrize(("n", "m"), [(8, 9), (9, 200), (200, 9), (30, 31), (2, 2), (31, 200)])
@pytest.mark.parametrize("rows", [7, 4096])
def test_features_themselves(n: int, m: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is singular, at 30 dimensions: the moments' route to the roots of rounding, an outer one to rounding."""
    monkeypatch.setattr(module, "_ROWS", rows)
    x, y = RNG.normal(size=(n, 30)), RNG.normal(size=(m, 30)) * RNG.uniform(0, 2, 30) + 0.3
    a, b = Moments().update(x), Moments().update(y)
    scale = math.sqrt(np.linalg.norm(a.covariance, 2) * np.linalg.norm(b.covariance, 2))
    found = frechet_of(torch.from_numpy(x), torch.from_numpy(y))
    assert abs(found - frechet(a, b)) < 2 * 30 * ROOT_EPS * scale
    assert found == pytest.approx(frechet_of(y, x), rel=1e-12)
    left, right = (x - x.mean(0)) / math.sqrt(n - 1), (y - y.mean(0)) / math.sqrt(m - 1)
    cross = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (left**2).sum() + (right**2).sum() - 2 * cross
    assert found == pytest.approx(expected, rel=1e-11)


def test_two_points_by_hand() -> None:
    """Pairs +-u and +-v have covariances 2 u u^T and 2 v v^T: 2 |u|^2 + 2 |v|^2 - 4 |u.v|, in any dimension."""
    u, v = np.zeros(2048), np.zeros(2048)
    u[:2], v[:2] = (3, 1), (1, -2)
    pairs = np.stack([u, -u]), np.stack([v + 5, -v + 5])
    assert frechet_of(*pairs) == pytest.approx(25 * 2048 + 2 * 10 + 2 * 5 - 4 * 1, rel=1e-14)


def test_a_singular_set_is_at_no_distance_from_itself() -> None:
    x = RNG.normal(size=(20, 60))
    assert frechet_of(x, x[::-1]) < 1e-13 * 60
    moved = x + 1e-3
    assert frechet_of(x, moved) == pytest.approx(60 * 1e-6, rel=1e-6)
    by_moments = frechet(Moments().update(x), Moments().update(moved))
    assert abs(by_moments - 60 * 1e-6) > 0.01 * 60 * 1e-6, "the control: roots of rounded zeros"


@pytest.mark.parametrize("n", [500, 2000, 8000])
def test_the_bias_falls_as_one_over_n(n: int) -> None:
    """N FD -> d + d (d + 1) / 4 for N draws of N(0, I) against the law itself.

    The mean gives d / N exactly. The covariance I + e gives tr(I + (I + e) - 2 (I + e)^(1/2)) = tr e^2 / 4 + O(e^3),
    with E tr e^2 = d (d + 1) / (N - 1); what follows is smaller by d / N, and of a factor near 1.
    """
    d, repeats = 8, 300
    truth = frechet_to(gaussian(np.zeros(d), np.eye(d)))
    found = np.array([n * truth(Moments().update(RNG.normal(size=(n, d)))) for _ in range(repeats)])
    expected = d + d * (d + 1) / 4
    assert abs(found.mean() - expected) < 4 * found.std() / math.sqrt(repeats) + 2 * expected * d / n


def test_sums_in_float32_lose_the_covariance() -> None:
    """Activations with a mean of some deviations, in batches: the control is E[x x^T] - m m^T in float32."""
    x = (RNG.normal(size=(20_000, 64)) + 4).astype(np.float32)
    exact = np.cov(x.astype(np.float64).T)
    moments, total, square = Moments(), np.zeros(64, np.float32), np.zeros((64, 64), np.float32)
    for part in np.split(x, 20):
        moments.update(part)
        total += part.sum(0)
        square += part.T @ part
    lost = (square - np.outer(total, total) / 20_000) / 19_999
    assert abs(moments.covariance - exact).max() < 1e-12
    assert abs(lost - exact).max() > 1e-5


def test_refusals() -> None:
    fine = Moments().update(np.eye(3))
    for bad in (np.nan, np.inf):
        with pytest.raises(RunFailed, match="NaN"):
            Moments().update(np.array([[0.0, bad, 1.0]]))
        with pytest.raises(RunFailed, match="NaN"):
            Moments.known(5, np.array([bad]), np.eye(1))
    with pytest.raises(RunFailed, match="3 and 2 dimensions"):
        frechet(fine, Moments().update(np.eye(2)))
    with pytest.raises(RunFailed, match="3 and 2 dimensions"):
        fine.update(np.eye(2))
    for few in (Moments(), Moments().update(np.ones((1, 3)))):
        with pytest.raises(RunFailed, match="at least 2 samples"):
            frechet(fine, few)
    with pytest.raises(RunFailed, match="does not go with"):
        Moments.known(5, np.zeros(3), np.eye(2))
    with pytest.raises(ValueError, match="expected"):
        Moments().update(np.zeros(3))
    with pytest.raises(RunFailed, match="at least 2 samples"):
        frechet_of(np.ones((1, 3)), np.eye(3))
    with pytest.raises(RunFailed, match="at least 2 samples"):
        frechet_of(np.eye(3), np.ones((1, 3)))
    with pytest.raises(RunFailed, match="3 and 2 dimensions"):
        frechet_of(np.eye(3), np.eye(2))
    with pytest.raises(RunFailed, match="NaN"):
        frechet_of(np.eye(3), np.eye(3) * np.nan)


@on_real_data
@pytest.mark.parametrize(
    # Distances of whole test to whole training set, as data/README.md section 3 prints them (3 digits).
    ("name", "expected"),
    [("cifar10_resnet20", 0.0214), ("mnist_cnn_a_adv", 0.396), ("fashion_mnist_mlp", 0.712)],
)
def test_published_statistics(name: str, expected: float) -> None:
    def moments(split: str) -> Moments:
        with np.load(Path(SHARED or "") / "reference_stats" / f"{name}_{split}.npz") as f:
            return Moments.known(int(f["n"]), f["mu"], f["sigma"])

    assert frechet(moments("train"), moments("test")) == pytest.approx(expected, rel=0.005)
