"""Intervals: known formulas, and that they hold the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gentk.errors import RunFailed
from gentk.metrics.frechet import Moments, frechet_to
from gentk.metrics.intervals import Blocks, Estimate, Interval, bootstrap, disjoint_blocks, paired_difference, wilson


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def holds(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def test_normal_and_student_by_the_tables() -> None:
    assert Estimate(3, 2).interval() == pytest.approx((3, 3 - 2 * 1.959964, 3 + 2 * 1.959964), abs=1e-5)
    assert Estimate(0, 1).interval(0.6827).high == pytest.approx(1, abs=1e-4)
    blocks = Blocks((1.0, 2.0, 3.0, 4.0, 5.0), 10)
    error = math.sqrt(2.5 / 5)
    assert blocks.error == pytest.approx(error, rel=1e-14)
    assert blocks.interval(7.0) == pytest.approx((7, 7 - 2.776445 * error, 7 + 2.776445 * error), abs=1e-5)


def test_wilson_by_hand() -> None:
    """Where |p - share| = z sqrt(p (1 - p) / n): the ends solve that quadratic."""
    z = 1.959963984540054
    for hits, n in ((1, 10), (5, 10), (37, 40), (500, 1000)):
        found = wilson(hits, n)
        assert found.value == hits / n
        for end in (found.low, found.high):
            assert abs(hits / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-10)
    # None of n: from 0 to z^2 / (n + z^2), where the normal approximation has no width at all.
    assert wilson(0, 20) == pytest.approx((0, 0, z**2 / (20 + z**2)), rel=1e-12)
    assert wilson(20, 20) == pytest.approx((1, 20 / (20 + z**2), 1), rel=1e-12)


@pytest.mark.parametrize("p", [0.03, 0.5, 0.9])
def test_wilson_covers(p: float) -> None:
    """The exact coverage by the binomial law, on average over sizes (it jumps from one to the next): 95 % +- 1 %."""
    coverage = []
    for n in range(50, 80):
        weights = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        coverage.append(sum(w for k, w in enumerate(weights) if holds(wilson(k, n), p)))
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.015)


def test_the_bootstrap_of_a_mean_is_that_of_the_formula() -> None:
    """Mean -+ 1.96 std / sqrt(n): the ends are quantiles of 4000, known to about 4 % of the half width."""
    x = draw(400) + 3
    found = bootstrap(x, resamples=4000)
    reach = 1.96 * float(x.std(correction=0)) / 20
    assert found.value == float(x.mean())
    assert found.low == pytest.approx(found.value - reach, abs=0.1 * reach)
    assert found.high == pytest.approx(found.value + reach, abs=0.1 * reach)


def test_the_bootstrap_covers() -> None:
    """A uniform law, 200 sets of 100: 90 % within 4 sqrt(0.09 / 200) = 8 %.

    The control: the spread of the samples themselves, not of their mean, holds it every time.
    """
    held = spread = 0
    for seed in range(200):
        x = torch.rand(100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        held += holds(bootstrap(x, resamples=200, level=0.9, seed=seed), 0.5)
        spread += bool(x.quantile(0.05) < 0.5 < x.quantile(0.95))
    assert held / 200 == pytest.approx(0.9, abs=0.08)
    assert spread == 200


def test_any_statistic_of_rows() -> None:
    """Rows stay together: the correlation of columns is resampled, not destroyed."""
    z = draw(500, 2)
    x = torch.stack([z[:, 0], z[:, 0] + 0.1 * z[:, 1]], 1)

    def correlation(rows: Tensor) -> float:
        return float(rows.T.corrcoef()[0, 1])

    found = bootstrap(x, statistic=correlation, resamples=200)
    assert found.value == correlation(x)
    assert 0.99 < found.low < found.value < found.high < 1


def test_pairs_cancel_what_they_share() -> None:
    """Two models on the same prompts, differing by 0.1 -+ 0.1 where prompts differ by 1: seen only in pairs."""
    prompt = draw(300)
    a, b = prompt + 0.1 + 0.1 * draw(300, seed=1), prompt
    found = paired_difference(a, b)
    assert found.value == pytest.approx(float((a - b).mean()), rel=1e-12)
    reach = 1.96 * float((a - b).std()) / 300**0.5
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.15)
    assert found.low > 0
    shuffled = paired_difference(a, b[torch.randperm(300, generator=torch.Generator().manual_seed(0))])
    assert shuffled.low < 0 < shuffled.high, "the control: out of order the pairs are none"

    def median(x: Tensor) -> float:
        return float(x.median())

    assert paired_difference(a, b, statistic=median).value == median(a) - median(b)


def test_disjoint_blocks_are_disjoint() -> None:
    seen: list[Tensor] = []

    def measure(index: Tensor) -> float:
        seen.append(index)
        return float(len(seen))

    found = disjoint_blocks(measure, 103, count=10)
    assert found == Blocks(tuple(float(i) for i in range(1, 11)), 10)
    together = torch.cat(seen)
    assert len(together) == len(together.unique()) == 100
    assert not torch.equal(together, together.sort().values), "in the order of the samples, blocks may differ in kind"


@pytest.mark.parametrize("at", [0.5, 0.0])
def test_blocks_tell_the_error_of_a_frechet_distance(at: float) -> None:
    """150 sets of 1000 in 3 dimensions, moved by `at`: the interval at 90 % holds the mean of FD_1000.

    Moved, as often as stated (within 4 sqrt(0.09 / 150) = 10 %); unmoved, where FD falls as 1 / N and the root of
    blocks overstates it, nearly always. The control: centred on the mean of the blocks it misses by their bias.
    """
    truth = frechet_to(Moments.known(10**6, np.zeros(3), np.eye(3)))
    sets, figures, found = 150, [], []
    for seed in range(sets):
        x = (draw(1000, 3, seed=seed) + at).numpy()
        figures.append(truth(Moments().update(x)))
        found.append(disjoint_blocks(lambda index, x=x: truth(Moments().update(x[index.numpy()])), 1000, seed=seed))
    centre = float(np.mean(figures))
    held = sum(holds(b.interval(f, 0.9), centre) for b, f in zip(found, figures, strict=True)) / sets
    biased = sum(holds(b.interval(float(np.mean(b.values)), 0.9), centre) for b in found) / sets
    if at:
        assert held == pytest.approx(0.9, abs=0.1)
    else:
        assert held > 0.97
        assert biased < 0.5


def test_resampling_is_seeded() -> None:
    x, y = draw(50), draw(50, seed=1)

    def unseeded() -> float:  # the control
        return float(x[torch.randint(50, (50,))].mean())

    torch.manual_seed(0)
    first, other = (bootstrap(x, resamples=50), paired_difference(x, y, resamples=50)), unseeded()
    torch.manual_seed(1)
    assert (bootstrap(x, resamples=50), paired_difference(x, y, resamples=50)) == first
    assert unseeded() != other
    assert bootstrap(x, resamples=50, seed=1) != first[0]
    assert disjoint_blocks(lambda i: float(i[0]), 50, seed=1) != disjoint_blocks(lambda i: float(i[0]), 50)


def test_refusals() -> None:
    with pytest.raises(RunFailed, match=r"sizes \[3, 4\] are not paired"):
        paired_difference(draw(3), draw(4))
    with pytest.raises(RunFailed, match="no samples"):
        bootstrap(draw(0))
    with pytest.raises(RunFailed, match="NaN"):
        bootstrap(draw(3) * math.nan)
    with pytest.raises(RunFailed, match="19 samples are too few for 10 blocks"):
        disjoint_blocks(lambda _: 0.0, 19)
    with pytest.raises(ValueError, match="no spread"):
        disjoint_blocks(lambda _: 0.0, 19, count=1)
    for hits, n in ((-1, 3), (4, 3), (0, 0)):
        with pytest.raises(ValueError, match="no proportion"):
            wilson(hits, n)
    for level in (0.0, 1.0, 95.0):
        with pytest.raises(ValueError, match="between 0 and 1"):
            bootstrap(draw(3), level=level)
        with pytest.raises(ValueError, match="between 0 and 1"):
            wilson(1, 2, level=level)
