"""Solvers: order of convergence, exact cases, and one limit for every process.

Reference: the probability-flow ODE in EDM's coordinates, d x_hat / ds = (x_hat - D(x_hat, s)) / s, by DOP853 to 1e-12.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from gentk.processes import grids
from gentk.processes.process import expand, from_x0
from gentk.processes.schedules import VE, VP, RectifiedFlow
from gentk.solvers import drawn, euler, evaluations, heun, one_step

TOP, BOTTOM = 5.0, 0.05
CALLS = {euler: lambda n: n, heun: lambda n: 2 * n - 1, one_step: lambda n: 1}  # on n steps, the last to 0


def levels(n):
    """n steps from TOP to BOTTOM, without the final 0: the smooth part, where the order shows."""
    return grids.uniform_lambda(n + 1, BOTTOM, TOP)[:-1]


def exact(mixture, process):
    return lambda x, t, cond=None: mixture.denoise(process, x, t)


@pytest.fixture
def start(gen):
    return TOP * torch.randn(16, 2, generator=gen, dtype=torch.float64)


@pytest.fixture
def end(mixture, start):
    def field(s, flat):
        x = torch.from_numpy(flat.copy()).reshape(start.shape)
        return ((x - mixture.denoise(VE(), x, torch.tensor(s).double())) / s).flatten().numpy()

    out = solve_ivp(field, (TOP, BOTTOM), start.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-12)
    return torch.from_numpy(out.y[:, -1].copy()).reshape(start.shape)


def run(solve, mixture, process, x_hat, sigmas, gen):
    """From x_hat at sigmas[0] to x_hat at sigmas[-1], both in EDM's coordinates."""
    times = grids.to_times(process, sigmas)
    first, last = (process.alpha(t) for t in (times[0], times[-1]))
    return solve(exact(mixture, process), process, first * x_hat, times, drawn(gen)) / last


def slope(solve, mixture, process, start, end, gen, steps=(40, 80, 160)):
    errors = [(run(solve, mixture, process, start, levels(n), gen) - end).square().mean().sqrt().item() for n in steps]
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.parametrize(("solver", "steps"), [(euler, (80, 160, 320)), (heun, (40, 80, 160))], ids=["euler", "heun"])
def test_order_of_convergence(solver, steps, process, mixture, start, end, gen):
    assert slope(solver.solve, mixture, process, start, end, gen, steps) == pytest.approx(solver.ORDER, abs=0.1)


def test_a_correction_at_the_wrong_end_loses_the_order(mixture, start, end, gen):
    """Negative control for the band: Heun's second velocity taken at the old time."""

    def broken(denoiser, process, x, grid, noise):
        for t, u in pairwise(grid):
            v = from_x0("velocity", process, x, t, denoiser(x, t))
            y = x + (u - t) * v
            x = x + 0.5 * (u - t) * (v + from_x0("velocity", process, y, t, denoiser(y, t)))
        return x

    assert abs(slope(broken, mixture, VE(), start, end, gen) - heun.ORDER) > 0.5


def test_every_process_has_the_same_limit(process, mixture, start, end, gen):
    """Heun at 200 steps: its error is of the order of h^2 = (ln(5 / 0.05) / 200)^2 = 5.3e-4, Euler's of that of h."""
    gap = {s.ORDER: (run(s.solve, mixture, process, start, levels(200), gen) - end).abs().max() for s in (euler, heun)}
    assert gap[2] < 5.3e-4
    assert gap[1] > 2e-3


def test_the_way_back_undoes_the_way_down(process, mixture, start, gen):
    sigmas = levels(200)
    down = run(heun.solve, mixture, process, start, sigmas, gen)
    back = run(heun.solve, mixture, process, down, sigmas.flip(0), gen)
    assert (down - start).abs().max() > 1
    assert (back - start).abs().max() < 5.3e-4


def test_gaussian_data_follow_their_closed_form(process, gen):
    """For N(m, v) the flow is x_hat(s) = m + sqrt((v + s^2) / (v + S^2)) (x_hat(S) - m)."""
    m, v = 0.4, 0.3

    def denoiser(x, t, cond=None):
        a, b = expand(process.alpha(t), x), expand(process.sigma(t), x)
        return m + a * v / (a**2 * v + b**2) * (x - a * m)

    x = TOP * torch.randn(8, 1, generator=gen, dtype=torch.float64)
    times = grids.to_times(process, levels(400))
    got = heun.solve(denoiser, process, process.alpha(times[0]) * x, times, drawn(gen)) / process.alpha(times[-1])
    want = m + ((v + BOTTOM**2) / (v + TOP**2)) ** 0.5 * (x - m)
    torch.testing.assert_close(got, want, rtol=0, atol=5e-4)


@pytest.mark.parametrize("solver", [euler, heun], ids=["euler", "heun"])
@pytest.mark.parametrize("process", [VE(), RectifiedFlow()], ids=lambda p: p.name)
def test_straight_paths_are_exact_in_one_step(solver, process, gen):
    """Data in one point: x_t = alpha m + sigma eps is linear in t, so any step length is exact."""
    m, eps = torch.tensor([[0.5, -1.0]]).double(), torch.randn(6, 2, generator=gen, dtype=torch.float64)
    grid = torch.tensor([process.t_max, 0.3 * process.t_max], dtype=torch.float64)
    first, last = (process.alpha(t) * m + process.sigma(t) * eps for t in grid)
    got = solver.solve(lambda x, t, cond: m.expand_as(x), process, first, grid, drawn(gen))
    torch.testing.assert_close(got, last, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize("solver", [euler, heun], ids=["euler", "heun"])
def test_a_step_to_zero_ends_on_the_denoiser(solver, process, mixture, gen):
    t = process.t_of(torch.tensor(0.7, dtype=torch.float64))
    x = torch.randn(6, 2, generator=gen, dtype=torch.float64)
    grid = torch.stack([t, torch.zeros_like(t)])
    assert torch.equal(
        solver.solve(exact(mixture, process), process, x, grid, drawn(gen)), mixture.denoise(process, x, t)
    )


@pytest.mark.parametrize("process", [VE(), RectifiedFlow()], ids=lambda p: p.name)
def test_that_end_is_euler_s_own_step(process, mixture, gen):
    """x - t v = D where alpha + t |alpha'| = 1; for `vp` it is not, which is why the solver does not take it."""
    gap = {}
    for p in (process, VP()):
        t = p.t_of(torch.tensor(0.7, dtype=torch.float64))
        x = torch.randn(6, 2, generator=gen, dtype=torch.float64)
        x0 = mixture.denoise(p, x, t)
        gap[p.name] = (x - t * from_x0("velocity", p, x, t, x0) - x0).abs().max().item()
    assert gap[process.name] < 1e-14
    assert gap["vp"] > 0.05


def test_flow_starts_where_alpha_is_zero(mixture, gen):
    times = grids.to_times(RectifiedFlow(), grids.uniform_t(8, RectifiedFlow()))
    x = torch.randn(6, 2, generator=gen, dtype=torch.float64)
    for solver in (euler, heun):
        assert solver.solve(exact(mixture, RectifiedFlow()), RectifiedFlow(), x, times, drawn(gen)).isfinite().all()


@pytest.mark.parametrize("solver", [euler, heun, one_step], ids=["euler", "heun", "one-step"])
def test_protocol(solver, process, gen):
    """Calls counted, label passed on, grid traced, x and global random state left alone, float32 kept."""
    calls = []

    def denoiser(x, t, cond):
        calls.append((float(t), cond))
        return 0.5 * x

    steps, label = 5, torch.tensor([1, 2])
    grid = grids.to_times(process, grids.karras(steps, 0.01, 20.0, 7.0))
    x = torch.randn(2, 3, 4, 4, generator=gen)
    kept, state, seen = x.clone(), torch.get_rng_state(), []
    out = solver.solve(
        denoiser, process, x, grid, drawn(gen), cond=label, trace=lambda t, x: seen.append((float(t), x))
    )
    assert len(calls) == evaluations(solver.solve, process, grid) == CALLS[solver](steps)
    assert all(c is label for _, c in calls)
    assert calls[0][0] == float(grid[0])
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert torch.equal(x, kept)
    assert torch.equal(state, torch.get_rng_state())
    assert seen[0][0] == float(grid[0])
    assert seen[-1][0] == 0
    assert seen[0][1] is x
    assert seen[-1][1] is out
    if solver is not one_step:
        assert [t for t, _ in seen] == grid.tolist()
    again = solver.solve(denoiser, process, x, grid, drawn(gen), cond=label)
    assert torch.equal(out, again)


def test_one_step_is_one_call(mixture, gen):
    x = torch.randn(6, 2, generator=gen, dtype=torch.float64)
    grid = grids.given([2.5])
    got = one_step.solve(exact(mixture, VE()), VE(), 2.5 * x, grid, drawn(gen))
    assert torch.equal(got, mixture.denoise(VE(), 2.5 * x, grid[0]))


def test_heun_samples_the_mixture(mixture, gen):
    """20 000 samples by 40 steps: mean and second moments within 5 standard errors (below 0.05) of the mixture's."""
    n = 20_000
    grid = grids.to_times(VE(), grids.karras(40, 0.002, 80.0, 7.0))
    x = heun.solve(
        exact(mixture, VE()), VE(), 80 * torch.randn(n, 2, generator=gen, dtype=torch.float64), grid, drawn(gen)
    )
    w, m, v = mixture.w, mixture.m, mixture.v
    mean = w @ m
    second = (w[:, None, None] * (m[:, :, None] * m[:, None] + v[:, None, None] * torch.eye(2).double())).sum(0)
    products = x[:, :, None] * x[:, None]
    assert ((x.mean(0) - mean).abs() < 5 * x.std(0) / n**0.5).all()
    assert ((products.mean(0) - second).abs() < 5 * products.std(0) / n**0.5).all()
    assert (5 * products.std(0) / n**0.5).max() < 0.06
