"""Measures of points: Gaussians in closed form, definitions by brute force, and the mistakes that must show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from gentk.errors import RunFailed
from gentk.metrics import neighbours
from gentk.metrics.intervals import wilson
from gentk.metrics.points import c2st, energy_distance, ksd, median_distance, mmd, sliced_wasserstein, wasserstein_1d

F64 = torch.float64


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=F64)


def folded(shift: float, deviation: float) -> float:
    """E |Z| for Z ~ N(shift, deviation^2)."""
    ratio = shift / deviation
    return deviation * math.sqrt(2 / math.pi) * math.exp(-(ratio**2) / 2) + shift * math.erf(ratio / math.sqrt(2))


# MMD


@pytest.mark.parametrize(("n", "m"), [(6, 6), (4, 9)])
def test_mmd_by_brute_force(n: int, m: int) -> None:
    x, y = draw(n, 3), draw(m, 3, seed=1) + 0.5

    def k(a: Tensor, b: Tensor) -> float:
        return math.exp(-float((a - b).square().sum()) / (2 * 0.7**2))

    def within(z: Tensor) -> float:
        return float(np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]))

    expected = within(x) + within(y) - 2 * float(np.mean([k(a, b) for a in x for b in y]))
    assert mmd(x, y, 0.7).value == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_mmd_of_gaussians_has_no_bias(shift: float) -> None:
    """E exp(-|z|^2 / 2 h^2) = (h^2 / (h^2 + v))^(d/2) exp(-|m|^2 / 2 (h^2 + v)) for z ~ N(m, v I), here v = 2.

    The control, with k(x, x) = 1 counted, is 2 (1 - E k) / n too large.
    """
    h, d, n, repeats = 1.5, 2, 40, 300
    within = (h**2 / (h**2 + 2)) ** (d / 2)
    expected = 2 * within * (1 - math.exp(-d * shift**2 / (2 * (h**2 + 2))))
    found = [mmd(draw(n, d, seed=2 * i), draw(n, d, seed=2 * i + 1) + shift, h) for i in range(repeats)]
    values = np.array([f.value for f in found])
    spread = values.std() / math.sqrt(repeats)
    assert abs(values.mean() - expected) < 4 * spread
    assert 2 * (1 - within) / n > 5 * spread
    errors = math.sqrt(np.mean([f.error**2 for f in found]))
    if shift:
        assert errors == pytest.approx(values.std(), rel=0.2)
    else:
        assert 1 < errors / values.std() < 1.8, "of equal laws too wide by about 1.4, as stated"


def test_the_median_distance() -> None:
    """Of pairs of different points of both sets together: by hand, and N(0, 2 I) in the plane has 2 sqrt(ln 2)."""
    assert median_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[10.0]])) == 9
    found = median_distance(draw(3000, 2), draw(3000, 2, seed=1))
    assert found == pytest.approx(2 * math.sqrt(math.log(2)), rel=0.05)
    assert found == median_distance(draw(3000, 2), draw(3000, 2, seed=1))
    assert found != median_distance(draw(3000, 2), draw(3000, 2, seed=1), seed=1)
    with pytest.raises(RunFailed, match="coincide"):
        median_distance(torch.zeros(5, 2), torch.zeros(5, 2))
    with pytest.raises(RunFailed, match="1 points have no distance"):
        median_distance(torch.zeros(1, 2), torch.zeros(0, 2))


# Energy distance


def test_energy_distance_is_scipy_s_but_for_the_diagonal() -> None:
    """SciPy's squared one divides by n^2: the terms within a set are (n - 1) / n of those without bias."""
    x, y = draw(30, 1), draw(41, 1, seed=1) + 0.4
    within = [float(torch.pdist(z).mean()) for z in (x, y)]
    theirs = stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert energy_distance(x, y).value == pytest.approx(theirs - within[0] / 30 - within[1] / 41, rel=1e-9)


def test_energy_distance_of_shifted_gaussians() -> None:
    """N(0, 1) and N(s, 1): differences are N(s, 2) across and N(0, 2) within."""
    shift, repeats = 0.8, 200
    expected = 2 * folded(shift, math.sqrt(2)) - 2 * folded(0, math.sqrt(2))
    for at, truth in ((shift, expected), (0.0, 0.0)):
        found = np.array(
            [energy_distance(draw(50, 1, seed=2 * i), draw(70, 1, seed=2 * i + 1) + at) for i in range(repeats)]
        )
        values, errors = found.T
        assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(repeats)
        if at:
            assert math.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.2)
        else:
            assert values.min() < 0


# Wasserstein


@pytest.mark.parametrize(("n", "m"), [(8, 8), (5, 7), (6, 9), (1, 4), (100, 37)])
@pytest.mark.parametrize("p", [1, 2])
def test_quantile_coupling_of_unequal_sizes(n: int, m: int, p: int) -> None:
    """Every point repeated to a common size (their product) couples point by point; SciPy knows p = 1."""
    x, y = draw(n, 3), 2 * draw(m, 3, seed=1) + 0.5
    found = wasserstein_1d(x, y, p)
    a, b = x.sort(0).values.repeat_interleave(m, 0), y.sort(0).values.repeat_interleave(n, 0)
    torch.testing.assert_close(found, (a - b).abs().pow(p).mean(0) ** (1 / p), rtol=1e-12, atol=0)
    if p == 1:
        theirs = [stats.wasserstein_distance(x[:, i].numpy(), y[:, i].numpy()) for i in range(3)]
        torch.testing.assert_close(found, torch.tensor(theirs, dtype=F64), rtol=1e-12, atol=0)
    torch.testing.assert_close(wasserstein_1d(y, x, p), found, rtol=1e-12, atol=0)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_sliced_wasserstein_of_a_shift(d: int) -> None:
    """A cloud and itself moved by s: each projection moves by u.s, E (u.s)^2 = |s|^2 / d and
    E |u.s| = |s| Gamma(d / 2) / (sqrt(pi) Gamma((d + 1) / 2)), up to the directions drawn (1 / sqrt(20,000))."""
    x, shift = draw(60, d), torch.full((d,), 0.7, dtype=F64)
    norm = 0.7 * math.sqrt(d)
    one = norm * math.gamma(d / 2) / (math.sqrt(math.pi) * math.gamma((d + 1) / 2))
    precision = 1e-12 if d == 1 else 4 / math.sqrt(20_000)
    for p, expected in ((1, one), (2, norm / math.sqrt(d))):
        assert sliced_wasserstein(x, x + shift, p, directions=20_000) == pytest.approx(expected, rel=precision)


def test_sliced_wasserstein_of_gaussians() -> None:
    """N(0, I) and N(s, c^2 I): W_2^2 = (u.s)^2 + (c - 1)^2 for each u, so |s|^2 / d + (c - 1)^2 on average.

    10,000 points of each law leave a noise of about 1 %.
    """
    x, y = draw(10_000, 3), 1.5 * draw(10_000, 3, seed=1) + 0.6
    assert sliced_wasserstein(x, y) == pytest.approx(math.sqrt(0.36 + 0.25), rel=0.03)
    # It is no unbiased distance: of equal laws it is positive, and falls with N.
    small, large = (sliced_wasserstein(draw(n, 3), draw(n, 3, seed=1)) for n in (100, 10_000))
    assert small > 4 * large > 0


def test_directions_are_seeded_and_of_unit_length() -> None:
    x, y = draw(50, 3), draw(40, 3, seed=1) + 1
    torch.manual_seed(0)
    first = sliced_wasserstein(x, y, directions=20)
    torch.manual_seed(1)
    assert sliced_wasserstein(x, y, directions=20) == first
    assert sliced_wasserstein(x, y, directions=20, seed=1) != first
    assert sliced_wasserstein(3 * x, 3 * y, directions=20) == pytest.approx(3 * first, rel=1e-12)

    def unseeded() -> float:  # the control
        u = torch.nn.functional.normalize(torch.randn(20, 3, dtype=F64), dim=1)
        return float(wasserstein_1d(x @ u.T, y @ u.T, 2).square().mean().sqrt())

    assert unseeded() != unseeded()


# C2ST


def test_the_classifier_is_at_chance_for_one_law_and_certain_of_two_far_apart() -> None:
    for classifier in ("neighbours", "logistic"):
        same = c2st(draw(400, 2), draw(400, 2, seed=1), classifier=classifier)
        assert same.accuracy.low < 0.5 < same.accuracy.high
        far = c2st(draw(100, 2), draw(150, 2, seed=1) + 20, classifier=classifier)
        assert far.accuracy.value == far.accuracy.high == 1
        assert far.n == 100


def test_accuracy_of_shifted_gaussians() -> None:
    """Bayes' rule between N(0, I) and N(s e, I) is right with probability Phi(s / 2); a line is Bayes' rule here."""
    y = draw(2000, 2, seed=1)
    y[:, 0] += 1.5
    found = c2st(draw(2000, 2), y, classifier="logistic")
    assert found.accuracy.low < stats.norm.cdf(0.75) < found.accuracy.high
    assert found.accuracy.high - found.accuracy.low < 0.05


def test_what_a_line_cannot_see_neighbours_do() -> None:
    x, y = draw(500, 2), 4 * draw(500, 2, seed=1)
    assert c2st(x, y, classifier="logistic").accuracy.value < 0.6
    assert c2st(x, y).accuracy.low > 0.7
    assert c2st(x, y) == c2st(x, y)
    assert c2st(x, y, seed=1) != c2st(x, y)


@pytest.mark.parametrize("classifier", ["neighbours", "logistic"])
def test_the_interval_of_the_accuracy_covers(classifier: str) -> None:
    """Equal laws, 80 pairs of sets: intervals of 95 % hold 1/2 in at least 93 %, the plain binomial one does not."""
    held = plain = 0
    for i in range(80):
        found = c2st(draw(60, 2, seed=2 * i), draw(60, 2, seed=2 * i + 1), classifier=classifier, seed=i).accuracy
        held += found.low < 0.5 < found.high
        binomial = wilson(found.value * 120, 120)
        plain += binomial.low < 0.5 < binomial.high
    assert held / 80 > 0.93 > plain / 80


# KSD


def direct_ksd(x: Tensor, score: Tensor, scale: float, *, itself: bool = False) -> float:
    """The Stein kernel pair by pair, derivatives of the kernel by autograd."""
    total = 0.0
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if itself or i != j]
    for i, j in pairs:
        a, b = x[i].clone().requires_grad_(), x[j].clone().requires_grad_()
        k = (scale**2 + (a - b).square().sum()) ** -0.5
        by_a, by_b = torch.autograd.grad(k, (a, b), create_graph=True)
        trace = sum(torch.autograd.grad(by_a[c], b, retain_graph=True)[0][c] for c in range(len(a)))
        total += (score[i] @ score[j] * k + score[i] @ by_b + score[j] @ by_a + trace).item()
    return total / len(pairs)


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_ksd_is_its_definition(scale: float) -> None:
    x, score = draw(7, 3) + 5, draw(7, 3, seed=1)
    assert ksd(x, score, scale).value == pytest.approx(direct_ksd(x, score, scale), rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_ksd_of_gaussians(shift: float) -> None:
    """q = N(s, I) to p = N(0, I): the scores differ by the constant -s, so that KSD^2 = |s|^2 E k(x, x').

    In the plane |x - x'|^2 / 4 is exponential: E k = integral of e^-t (1 + 4 t)^(-1/2). Under the target itself the
    mean is 0; the control, pairs of a point with itself, adds a positive E u(x, x) / n.
    """
    n, repeats = 60, 200
    mean_kernel = integrate.quad(lambda t: math.exp(-t) / math.sqrt(1 + 4 * t), 0, math.inf)[0]
    expected = 2 * shift**2 * mean_kernel
    found, biased = [], []
    for i in range(repeats):
        x = draw(n, 2, seed=i) + shift
        estimate = ksd(x, -x)
        found.append(estimate)
        diagonal = float((x.square().sum(1) + 2).mean())  # u(x, x) = |s(x)|^2 + d for a scale of 1
        biased.append(estimate.value * (n - 1) / n + diagonal / n)
    values, errors = np.array(found).T
    spread = values.std() / math.sqrt(repeats)
    assert abs(values.mean() - expected) < 4 * spread
    assert np.mean(biased) - expected > 5 * spread
    if shift:
        assert values.min() > 0
        assert math.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.2)
    else:
        assert values.min() < 0
    x = draw(5, 2)
    itself = ksd(x, -x).value * 4 / 5 + float((x.square().sum(1) + 2).mean()) / 5
    assert itself == pytest.approx(direct_ksd(x, -x, 1.0, itself=True), rel=1e-9)


def test_ksd_tells_a_wrong_score() -> None:
    x = draw(1000, 2)
    right, wrong = ksd(x, -x), ksd(x, -x / 2)
    assert abs(right.value) < 4 * right.error
    assert wrong.value > 8 * wrong.error


# All


def test_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(50, 3), draw(33, 3, seed=1) + 0.2

    def figures() -> list[float]:
        return [*mmd(x, y, 1), *energy_distance(x, y), *ksd(x, -x), sliced_wasserstein(x, y, directions=30)]

    whole = figures()
    for block in (1, 100, 170):
        monkeypatch.setattr(neighbours, "_BLOCK", block)
        assert figures() == pytest.approx(whole, rel=1e-9)


def test_refusals() -> None:
    for measure in (energy_distance, sliced_wasserstein, c2st, median_distance, wasserstein_1d):
        with pytest.raises(RunFailed, match="3 and 2 dimensions"):
            measure(draw(20, 3), draw(20, 2))
        with pytest.raises(RunFailed, match="NaN"):
            measure(draw(20, 3), draw(20, 3) * math.nan)
    with pytest.raises(RunFailed, match="1 samples are too few"):
        mmd(draw(1, 2), draw(5, 2), 1)
    with pytest.raises(RunFailed, match="no points"):
        sliced_wasserstein(draw(0, 2), draw(5, 2))
    with pytest.raises(RunFailed, match="9 points of a set are too few for 5 folds"):
        c2st(draw(9, 2), draw(20, 2))
    with pytest.raises(RunFailed, match="1 points are too few"):
        ksd(draw(1, 2), draw(1, 2))
    with pytest.raises(ValueError, match="scores have shape"):
        ksd(draw(5, 2), draw(4, 2))
    with pytest.raises(ValueError, match="positive"):
        mmd(draw(5, 2), draw(5, 2), 0)
    with pytest.raises(ValueError, match="positive"):
        ksd(draw(5, 2), draw(5, 2), -1)
    with pytest.raises(ValueError, match="at least 1"):
        wasserstein_1d(draw(5, 2), draw(5, 2), 0.5)
    with pytest.raises(ValueError, match="0 directions"):
        sliced_wasserstein(draw(5, 2), draw(5, 2), directions=0)
