"""Guidance within an interval of noise levels, and what it costs. (Without an interval: test_denoiser.py.)"""

from __future__ import annotations

import pytest
import torch

from gentk.errors import RecipeError
from gentk.processes import grids
from gentk.processes.guidance import calls, cost, guided
from gentk.processes.process import ratio
from gentk.processes.schedules import VE, VP, Cosine, Discrete, RectifiedFlow
from gentk.recipe import schema
from gentk.solvers import drawn, euler, evaluations, heun

LABEL = torch.tensor([0, 1])


class Counted:
    """Says 1 without a label and 3 with one: guidance by 2.5 makes it 1 + 2.5 (3 - 1) = 6. Keeps its calls' times."""

    def __init__(self):
        self.seen = []

    def __call__(self, x, t, cond=None):
        self.seen.append((float(t.max()), cond is not None))
        return torch.zeros_like(x) + (1.0 if cond is None else 3.0)


@pytest.fixture(params=[VE(), VP(), Cosine(), RectifiedFlow(), Discrete()], ids=lambda p: p.name)
def process(request):
    return request.param


@pytest.mark.parametrize(
    ("s", "inside"), [(0.1, False), (0.3, True), (0.31, True), (5.0, True), (5.1, False), (50, False)]
)
def test_acts_in_the_interval_alone(process, s, inside):
    """Both ends included, for every process: its times are turned into ratios, not compared with them."""
    net = Counted()
    t = process.t_of(torch.tensor(s, dtype=torch.float64))
    got = guided(net, 2.5, (0.3, 5.0), process)(torch.zeros(2, 4), t, LABEL)
    assert (got == (6.0 if inside else 3.0)).all()
    assert [labelled for _, labelled in net.seen] == ([False, True] if inside else [True])


def test_without_an_interval_it_acts_everywhere():
    for s in (1e-3, 1.0, 80.0):
        assert (guided(Counted(), 2.5)(torch.zeros(2, 4), torch.tensor(s), LABEL) == 6).all()


def test_the_end_where_nothing_is_left_of_the_data():
    """alpha = 0: a ratio of inf is above every interval."""
    net = Counted()
    got = guided(net, 2.5, (0.3, 1e9), RectifiedFlow())(torch.zeros(2, 4), torch.ones((), dtype=torch.float64), LABEL)
    assert (got == 3).all()
    assert len(net.seen) == 1


def test_every_sample_has_its_own_time(process):
    t = process.t_of(torch.tensor([0.1, 1.0], dtype=torch.float64))
    assert guided(Counted(), 2.5, (0.3, 5.0), process)(torch.zeros(2, 3, 4, 4), t, LABEL).amax((1, 2, 3)).tolist() == [
        3,
        6,
    ]


def test_without_a_label_there_is_nothing_to_guide_towards():
    for s in (0.1, 1.0):
        net = Counted()
        assert (guided(net, 2.5, (0.3, 5.0), VE())(torch.zeros(2, 4), torch.tensor(s), None) == 1).all()
        assert len(net.seen) == 1


def test_scales_that_need_one_call():
    """Scale 0 is unconditional within the interval and, as everything is, conditional outside it."""
    net = Counted()
    assert guided(net, 1.0, (0.3, 5.0), VE()) is net
    for s, value in ((0.1, 3.0), (1.0, 1.0)):
        net = Counted()
        assert (guided(net, 0.0, (0.3, 5.0), VE())(torch.zeros(2, 4), torch.tensor(s), LABEL) == value).all()
        assert len(net.seen) == 1


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("interval", [None, (0.0, 100.0), (0.3, 5.0), (90.0, 100.0)])
@pytest.mark.parametrize("solver", [euler, heun], ids=["euler", "heun"])
def test_cost_is_what_a_solver_spends(solver, interval, scale, process, gen):
    """Counted at the network; the times are those that the solver calls the guided denoiser at."""
    grid = grids.build(schema.KarrasGrid(name="karras"), 9, process)
    x = torch.zeros(2, 4, dtype=torch.float64)
    asked, net = Counted(), Counted()
    solver.solve(asked, process, x, grid, drawn(gen), cond=LABEL)
    solver.solve(guided(net, scale, interval, process), process, x, grid, drawn(gen), cond=LABEL)
    times = torch.tensor([t for t, _ in asked.seen], dtype=torch.float64)
    assert len(times) == evaluations(solver.solve, process, grid)
    assert cost(scale, interval, process, times) == len(net.seen)
    if solver is euler:
        assert torch.equal(times, grid[:-1])
        levels = ratio(process, times)
        within = len(times) if interval is None else sum(interval[0] <= s <= interval[1] for s in levels.tolist())
        assert cost(scale, interval, process, grid[:-1]) == len(times) + within * (calls(scale) - 1)


def test_a_bound_that_is_a_grid_point_holds_it(process):
    """Though the ratio of its time is not the bound to the last digit; an interval shrunk by 1e-6 holds neither end."""
    sigmas = grids.karras(12, 0.02, 50.0, 7.0)
    times = grids.to_times(process, sigmas)[:-1]
    low, high = sigmas[8].item(), sigmas[3].item()
    assert cost(2.0, (low, high), process, times) == 12 + 6
    assert cost(2.0, (low * (1 + 1e-6), high * (1 - 1e-6)), process, times) == 12 + 4


@pytest.mark.parametrize("interval", [(5.0, 0.3), (1.0, 1.0), (-1.0, 1.0), (0.0, float("nan"))])
def test_empty_intervals_are_refused(interval):
    for ask in (lambda: guided(Counted(), 2.0, interval, VE()), lambda: cost(2.0, interval, VE(), torch.ones(3))):
        with pytest.raises(RecipeError, match="no noise level lies in the interval") as fault:
            ask()
        assert fault.value.hint
