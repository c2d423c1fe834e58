from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gentk.errors import RunFailed
from gentk.metrics import neighbours
from gentk.metrics.neighbours import Prdc, density_coverage, nearest, prdc, precision_recall

F64 = torch.float64
ROOT = Path(__file__).parents[2]


def cloud(n: int, d: int = 3, seed: int = 0, **at: float) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64) + at.get("at", 0.0)


def brute(points: np.ndarray, manifold: np.ndarray, k: int) -> float:
    """The share of `points` in the manifold, one point and one ball at a time."""
    radii = [
        sorted(np.linalg.norm(m - o) for j, o in enumerate(manifold) if j != i)[k - 1] for i, m in enumerate(manifold)
    ]
    hits = [any(np.linalg.norm(p - m) <= r for m, r in zip(manifold, radii, strict=True)) for p in points]
    return sum(hits) / len(points)


def by_definition(real: np.ndarray, fake: np.ndarray, k: int, *, itself: bool = False) -> Prdc:
    """Naeem et al. 2020 from the whole matrix; `itself`: the mistake of counting a point as its own neighbour."""

    def radii(points: np.ndarray) -> np.ndarray:
        return np.sort(np.linalg.norm(points[:, None] - points, axis=-1), 1)[:, k - 1 if itself else k]

    apart = np.linalg.norm(real[:, None] - fake, axis=-1)
    inside = apart < radii(real)[:, None]
    recalled = (apart < radii(fake)).any(1).mean()
    coverage = (apart.min(1) < radii(real)).mean()
    return Prdc(inside.any(0).mean(), recalled, inside.sum(0).mean() / k, coverage)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_against_brute_force(k: int) -> None:
    real, fake = cloud(60), cloud(40, seed=1, at=0.8) * 0.7
    precision, recall = precision_recall(real, fake, k)
    assert precision == brute(fake.numpy(), real.numpy(), k)
    assert recall == brute(real.numpy(), fake.numpy(), k)
    assert precision != recall
    assert 0 < recall < 1


def test_identical_and_disjoint_sets() -> None:
    assert precision_recall(cloud(50), cloud(50)) == (1, 1)
    assert precision_recall(cloud(50), cloud(50, at=100.0)) == (0, 0)


def test_a_dropped_mode_costs_recall_its_share() -> None:
    modes = [cloud(20, seed=s, at=100.0 * s) for s in range(4)]
    real, fake = torch.cat(modes), torch.cat(modes[:3])
    assert precision_recall(real, fake) == (1, 0.75)
    assert precision_recall(fake, real) == (0.75, 1)


def test_borders_belong_to_the_balls() -> None:
    real = torch.tensor([[0.0], [1.0]])  # k = 1: both balls have radius 1 and cover [-1, 2]
    assert precision_recall(real, torch.tensor([[2.0], [2.5]]), k=1) == (0.5, 0)
    assert precision_recall(real, torch.tensor([[2.0001], [2.5]]), k=1) == (0, 0)


def test_a_point_is_not_its_own_neighbour() -> None:
    # Were it, the first ball would have radius 0 and miss everything but its centre.
    assert precision_recall(torch.tensor([[0.0], [4.0]]), torch.tensor([[3.0], [3.5]]), k=1)[0] == 1


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("d", [2, 40])
def test_prdc_is_its_definition(k: int, d: int) -> None:
    real, fake = cloud(70, d=d), cloud(50, d=d, seed=1, at=0.3) * 0.8
    found = prdc(real, fake, k)
    assert found == pytest.approx(by_definition(real.numpy(), fake.numpy(), k), rel=1e-14)
    assert density_coverage(real, fake, k) == (found.density, found.coverage)
    wrong = by_definition(real.numpy(), fake.numpy(), k, itself=True)
    assert wrong != pytest.approx(found, rel=0.01), "the control: a point as its own neighbour"


@pytest.mark.parametrize("k", [1, 5])
def test_prdc_of_a_set_with_itself(k: int) -> None:
    """Each ball holds its centre and k - 1 others, the k-th being on the border: density exactly 1, and all the rest.

    So it is for a copy, in another order: the order of sums must not decide about ties.
    """
    x = cloud(500, d=64) + 3
    assert prdc(x, x, k) == (1, 1, 1, 1)
    assert prdc(x, x[torch.randperm(500, generator=torch.Generator().manual_seed(0))], k) == (1, 1, 1, 1)
    assert prdc(x, x + 100, k) == (0, 0, 0, 0)


def test_density_and_coverage_tell_what_precision_and_recall_miss() -> None:
    """An outlier among the real points blows up one ball: precision falls for it, density hardly."""
    real = torch.cat([cloud(100), cloud(1, at=50.0)])
    fake = cloud(100, seed=1, at=20.0)
    assert precision_recall(real, fake)[0] == 1
    found = prdc(real, fake)
    assert found.density <= 1 / 5
    assert found.coverage == pytest.approx(1 / 101)


def test_density_of_one_law_is_one() -> None:
    """Exactly, at any N: around a real point the N - 1 others and a fake one are exchangeable.

    So the fake one is nearer than the k-th other with probability k / N, and lies in k of N balls on average.
    """
    found = torch.tensor([prdc(cloud(40, seed=2 * s), cloud(40, seed=2 * s + 1)).density for s in range(200)])
    assert abs(found.mean() - 1) < 4 * found.std() / 200**0.5


def test_the_two_rules_differ_on_borders() -> None:
    real, fake = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [2.5]])
    assert precision_recall(real, fake, k=1) == (0.5, 0)  # <=
    assert prdc(real, fake, k=1) == (0, 0, 0, 0)  # <
    grid = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
    moved = grid + torch.tensor([1.0, 0.0])  # all distances tie
    assert precision_recall(grid, moved, k=1) == (1, 1)
    assert prdc(grid, moved, k=1) == (7 / 8, 7 / 8, 7 / 8, 7 / 8)  # the centre itself and no more


@pytest.mark.parametrize("away", [1e-7, -1e-7])
def test_near_a_border_is_not_on_it(away: float) -> None:
    real, fake = torch.tensor([[0.0], [1.0]], dtype=F64), torch.tensor([[2.0 + away], [9.0]], dtype=F64)
    inside = away < 0
    assert precision_recall(real, fake, k=1)[0] == prdc(real, fake, k=1).precision == 0.5 * inside


def test_duplicates_count_as_neighbours() -> None:
    real = torch.tensor([[5.0]] * 4)  # radius 0
    assert precision_recall(real, torch.tensor([[5.0], [5.0], [5.0], [5.1]]), k=3)[0] == 0.75
    assert prdc(real, real, k=3) == (0, 0, 0, 0)  # nothing is nearer than 0


def test_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = cloud(50), cloud(33, seed=1)
    whole, figures = (precision_recall(real, fake), nearest(real, fake)), prdc(real, fake)
    for block in (1, 100, 170):
        monkeypatch.setattr(neighbours, "_BLOCK", block)
        assert precision_recall(real, fake) == whole[0]
        assert prdc(real, fake) == figures
        torch.testing.assert_close(nearest(real, fake), whole[1], rtol=1e-12, atol=0)  # blocks round differently


def test_memory_is_that_of_blocks() -> None:
    """6000 points: 288 MB of distances, in blocks of 1 MB. The control, results kept one by one, took half of it."""
    code = (
        "import resource, torch\n"
        "from gentk.metrics import neighbours\n"
        "from gentk.metrics.points import mmd\n"
        "neighbours._BLOCK = 2**17\n"
        "x, y = torch.randn(2, 6000, 2)\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "neighbours.prdc(x[:100], y[:100]), mmd(x[:100], y[:100], 1)\n"
        "before = peak()\n"
        "neighbours.prdc(x, y), mmd(x, y, 1)\n"
        "print((peak() - before) / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(done.stdout) < 60


def test_nearest_against_brute_force() -> None:
    a, b = cloud(20), cloud(30, seed=1)
    expected = np.linalg.norm(a.numpy()[:, None] - b.numpy()[None], axis=-1).min(1)
    np.testing.assert_allclose(nearest(a, b).numpy(), expected, rtol=1e-12)
    assert nearest(a[:0], b).shape == (0,)
    assert nearest(a.half(), b.half()).dtype == torch.float64


def test_equal_points_are_at_distance_zero_far_from_the_origin() -> None:
    a = (cloud(100, d=64) + 1000).float()
    assert (nearest(a, a.flip(0)) == 0).all()
    by_product = torch.cdist(a, a, compute_mode="use_mm_for_euclid_dist").diagonal()
    assert by_product.max() > 0.1, "the control: |a|^2 + |b|^2 - 2ab loses them"


def test_refusals() -> None:
    with pytest.raises(RunFailed, match="3 fake samples are too few for k = 3"):
        precision_recall(cloud(10), cloud(3))
    with pytest.raises(RunFailed, match="3 and 2 dimensions"):
        precision_recall(cloud(10), cloud(10, d=2))
    with pytest.raises(RunFailed, match="5 real samples are too few for k = 5"):
        prdc(cloud(5), cloud(9))
    with pytest.raises(RunFailed, match="no points"):
        nearest(cloud(10), cloud(0))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(RunFailed, match="NaN"):
            nearest(cloud(5), cloud(5) * bad)
    with pytest.raises(ValueError, match="k is 0"):
        precision_recall(cloud(5), cloud(5), k=0)
    with pytest.raises(ValueError, match="expected"):
        nearest(torch.zeros(3), torch.zeros(3))
