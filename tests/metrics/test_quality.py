"""Figures of samples against data whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gentk.data import DataSet
from gentk.metrics.frechet import frechet
from gentk.metrics.quality import all_of, halves, moments, quality

DIM = 4


def points(n: int, seed: int, at: float = 0.0) -> Tensor:
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed)) + at


def cloud(split: str, n: int, seed: int, at: float = 0.0) -> DataSet:
    return DataSet("cloud", split, points(n, seed, at), None, 0, "points")  # type: ignore[arg-type]


def identity(x: Tensor) -> Tensor:
    return x.flatten(1).double()


TRAIN, TEST = cloud("train", 300, 0), cloud("test", 100, 1)


def test_the_training_set_itself_is_perfect_and_a_copy() -> None:
    """fd 0 up to the root of rounding (1e-16 of traces of order 4), precision = recall = 1, and `nearest` tells."""
    figures = quality(TRAIN.x, TRAIN, TEST, identity, k=3)
    assert figures.keys() == {"fd", "precision", "recall", "nearest", "nearest_test"}
    assert 0 <= figures["fd"] < 1e-6
    assert figures["precision"] == figures["recall"] == 1
    assert figures["nearest"] == 0 < 0.2 < figures["nearest_test"]


def test_honest_samples_are_as_far_from_the_training_set_as_held_out_data() -> None:
    """Both are means of distances with a spread of about 0.4: 4 standard errors of 300 and 100 of them."""
    figures = quality(points(300, 2), TRAIN, TEST, identity, k=3)
    assert abs(figures["nearest"] - figures["nearest_test"]) < 4 * 0.4 * math.sqrt(1 / 300 + 1 / 100)
    assert 0.6 < figures["precision"] < 1
    assert 0.6 < figures["recall"] < 1


def test_shifted_samples_are_that_far_away() -> None:
    """Training set moved by 10 in each coordinate: the covariances agree, fd = 4 * 10^2, nothing inside anything."""
    figures = quality(TRAIN.x + 10, TRAIN, TEST, identity, k=3)
    assert figures["fd"] == pytest.approx(400, rel=1e-5)  # float32 data: 10 is added to a relative 6e-8
    assert figures["precision"] == figures["recall"] == 0
    assert figures["nearest"] > 10
    assert figures["nearest_test"] == quality(TRAIN.x, TRAIN, TEST, identity, k=3)["nearest_test"], "of the data alone"


def test_a_collapsed_generator_has_precision_without_recall() -> None:
    centre = 0.05 * points(300, 2)
    figures = quality(centre, TRAIN, TEST, identity, k=3)
    assert figures["precision"] == 1
    assert figures["recall"] < 0.05
    assert figures["fd"] == pytest.approx(DIM * 0.95**2, rel=0.15)  # sum over coordinates of (1 - 0.05)^2


def test_figures_are_those_of_the_features() -> None:
    """The extractor decides: one that sees the first coordinate alone is blind to a change in the others."""
    moved = TRAIN.x.clone()
    moved[:, 1:] += 5

    def first(x: Tensor) -> Tensor:
        return x[:, :1].double()

    assert quality(moved, TRAIN, TEST, first, k=3)["fd"] < 1e-6
    assert quality(moved, TRAIN, TEST, identity, k=3)["fd"] > 70


def test_images_reach_the_extractor_scaled_to_one() -> None:
    """`all_of` gives what samples are: floats in [-1, 1], 0 and 255 the ends, in the order of the set."""
    x = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(3, 1, 1, 1)
    out = all_of(DataSet("d", "train", x, None, 0, "image"))
    torch.testing.assert_close(out.flatten(), torch.tensor([-1.0, 1.0, -0.6]))


def test_moments_are_torch_s() -> None:
    x = points(50, 0).double()
    found = moments(x)
    torch.testing.assert_close(torch.from_numpy(found.mean), x.mean(0))
    torch.testing.assert_close(torch.from_numpy(found.covariance), x.T.cov())
    assert frechet(found, moments(x.flip(0))) < 1e-10


def test_the_yardstick_is_positive_and_falls_as_one_over_n() -> None:
    """Halves of N points of one law: the mean squared distance is all bias, c / N; means and covariances give parts.

    Of means: E |m1 - m2|^2 = D * 2 / (N / 2) = 4 D / N exactly; the covariances add less than as much again for D = 4.
    """

    def yardstick(n: int) -> float:
        return halves(cloud("train", 3 * n // 4, 5), cloud("test", n // 4, 6), identity, rounds=20)

    small, large = yardstick(200), yardstick(3200)
    for n, found in ((200, small), (3200, large)):
        assert 0.6 * 4 * DIM / n < found < 2.5 * 4 * DIM / n
    assert 8 < small / large < 32  # 16, and both spread by less than a third


def test_the_yardstick_uses_both_splits_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same answer every time, whatever the global generator holds; a test split from elsewhere would show."""
    seen: list[int] = []

    def counting(x: Tensor) -> Tensor:
        seen.append(len(x))
        return identity(x)

    torch.manual_seed(0)
    first = halves(TRAIN, TEST, counting)
    torch.manual_seed(1)
    assert halves(TRAIN, TEST, identity) == first
    assert seen == [300, 100]
    assert halves(TRAIN, cloud("test", 100, 1, at=3.0), identity) != first


def test_the_yardstick_halves_are_random_not_the_splits() -> None:
    """Splits of different laws: their own distance is 4 * 3^2 = 36, that of random halves is not."""
    measure: Callable[[DataSet, DataSet], float] = lambda a, b: frechet(moments(identity(a.x)), moments(identity(b.x)))  # noqa: E731
    other = cloud("test", 300, 1, at=3.0)
    assert measure(TRAIN, other) == pytest.approx(36, rel=0.1)
    assert halves(TRAIN, other, identity) < 2
