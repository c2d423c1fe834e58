"""Grids of noise levels."""

from __future__ import annotations

import pytest
import torch

from gentk.errors import RecipeError
from gentk.processes import grids
from gentk.processes.process import ratio
from gentk.processes.schedules import VE, VP, Cosine, RectifiedFlow


@pytest.mark.parametrize("n", [1, 2, 18])
def test_every_grid_decreases_from_the_top_to_zero(process, n):
    made = {
        "karras": grids.karras(n, 0.002, 80.0, 7.0),
        "lambda": grids.uniform_lambda(n, 0.002, 80.0),
        "t": grids.uniform_t(n, process),
    }
    for name, grid in made.items():
        assert grid.shape == (n + 1,)
        assert grid.dtype == torch.float64
        assert (grid[1:] < grid[:-1]).all()
        assert grid[-1] == 0
        if name != "t":
            assert grid[0] == 80
            assert n == 1 or grid[-2].item() == pytest.approx(0.002, rel=1e-12)


def test_karras_is_uniform_in_the_root_of_sigma():
    grid = grids.karras(18, 0.002, 80.0, 7.0)[:-1]
    torch.testing.assert_close((grid ** (1 / 7)).diff().diff(), torch.zeros(16).double(), rtol=0, atol=1e-12)
    assert ((grid ** (1 / 6)).diff().diff().abs() > 1e-4).any()  # negative control: not with another exponent
    i, n, lo, hi = 5, 18, 0.002 ** (1 / 7), 80 ** (1 / 7)
    assert grid[i].item() == pytest.approx((hi + i / (n - 1) * (lo - hi)) ** 7, rel=1e-12)


def test_uniform_lambda_has_a_constant_ratio():
    grid = grids.uniform_lambda(12, 0.01, 10.0)[:-1]
    torch.testing.assert_close(grid.log().diff().diff(), torch.zeros(10).double(), rtol=0, atol=1e-12)


def test_uniform_t_is_uniform_in_time(process):
    times = grids.to_times(process, grids.uniform_t(10, process))
    want = torch.linspace(process.t_max, 0, 11, dtype=torch.float64)
    torch.testing.assert_close(times, want, rtol=1e-11, atol=1e-13)


def test_to_times_keeps_the_ratios_and_zero(process):
    grid = grids.karras(10, 0.002, 80.0, 7.0)
    times = grids.to_times(process, grid)
    assert times[-1] == 0
    assert times.dtype == torch.float64
    torch.testing.assert_close(ratio(process, times), grid, rtol=1e-10, atol=0)


def test_flow_starts_at_pure_noise():
    grid = grids.uniform_t(4, RectifiedFlow())
    assert grid[0] == torch.inf
    assert grids.to_times(RectifiedFlow(), grid).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_given_adds_the_zero_once():
    assert grids.given([4.0, 1.0]).tolist() == [4.0, 1.0, 0.0] == grids.given((4.0, 1.0, 0.0)).tolist()


@pytest.mark.parametrize("levels", [(), (0.0,), (1.0, 2.0), (1.0, 1.0), (2.0, -1.0), (float("nan"), 1.0)])
def test_given_refuses_what_does_not_decrease_to_zero(levels):
    with pytest.raises(RecipeError, match="do not decrease"):
        grids.given(levels)


@pytest.mark.parametrize("bad", [(0, 0.1, 1.0), (3, 0.0, 1.0), (3, 2.0, 1.0), (3, 1.0, 1.0)])
def test_impossible_grids_are_refused(bad):
    with pytest.raises(RecipeError, match="grid"):
        grids.karras(*bad, 7.0)
    with pytest.raises(RecipeError, match="grid"):
        grids.uniform_lambda(*bad)


def test_a_grid_above_the_process_is_refused():
    with pytest.raises(RecipeError, match="above 80, the largest of process `ve`"):
        grids.to_times(VE(), grids.karras(5, 0.002, 81.0, 7.0))
    with pytest.raises(RecipeError, match="largest of process `vp`"):
        grids.to_times(VP(), grids.karras(5, 0.002, 153.0, 7.0))
    grids.to_times(Cosine(), grids.karras(5, 0.002, 6000.0, 7.0))  # its own largest is 6366
