from __future__ import annotations

import numpy as np
import pytest
import torch

from gentk.errors import RunFailed
from gentk.metrics import neighbours
from gentk.metrics.neighbours import nearest, precision_recall

F64 = torch.float64


def cloud(n: int, d: int = 3, seed: int = 0, **at: float) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64) + at.get("at", 0.0)


def brute(points: np.ndarray, manifold: np.ndarray, k: int) -> float:
    """The share of `points` in the manifold, one point and one ball at a time."""
    radii = [
        sorted(np.linalg.norm(m - o) for j, o in enumerate(manifold) if j != i)[k - 1] for i, m in enumerate(manifold)
    ]
    hits = [any(np.linalg.norm(p - m) <= r for m, r in zip(manifold, radii, strict=True)) for p in points]
    return sum(hits) / len(points)


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


def test_duplicates_count_as_neighbours() -> None:
    real = torch.tensor([[5.0]] * 4)  # radius 0
    assert precision_recall(real, torch.tensor([[5.0], [5.0], [5.0], [5.1]]), k=3)[0] == 0.75


def test_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = cloud(50), cloud(33, seed=1)
    whole = precision_recall(real, fake), nearest(real, fake)
    for block in (1, 100, 170):
        monkeypatch.setattr(neighbours, "_BLOCK", block)
        assert precision_recall(real, fake) == whole[0]
        torch.testing.assert_close(nearest(real, fake), whole[1], rtol=1e-12, atol=0)  # blocks round differently


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
    with pytest.raises(RunFailed, match="no points"):
        nearest(cloud(10), cloud(0))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(RunFailed, match="NaN"):
            nearest(cloud(5), cloud(5) * bad)
    with pytest.raises(ValueError, match="k is 0"):
        precision_recall(cloud(5), cloud(5), k=0)
    with pytest.raises(ValueError, match="expected"):
        nearest(torch.zeros(3), torch.zeros(3))
