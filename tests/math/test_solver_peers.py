"""The published solvers: orders of convergence, weak orders without Monte Carlo, and the ends of a grid.

Strong orders: the mixture under `vp`, uniform lambda from -3 to 3, 64 starts, against DOP853 at 1e-12. Weak orders:
scalar data N(0, 1/4), whose denoiser is linear, so that a solver maps its start and its noises linearly to its output;
run once on the unit vectors of these independent sources, it gives the output's variance exactly.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from gentk.errors import RecipeError
from gentk.processes import grids
from gentk.processes.schedules import VE, VP, RectifiedFlow
from gentk.solvers import (
    ancestral,
    ddim,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    drawn,
    edm_stochastic,
    evaluations,
    multistep,
    unipc,
)
from gentk.solvers.multistep import Nodes

P = VP()
QUIET = {  # every deterministic setting
    "ddim": (ddim, {}),
    "dpmpp-2m": (dpmpp_2m, {}),
    "dpmpp-2m-sde-0": (dpmpp_2m_sde, {"eta": 0.0}),
    "dpmpp-3m": (dpmpp_3m, {}),
    "dpmpp-3m-published": (dpmpp_3m, {"form": "published"}),
    "unipc-1": (unipc, {"order": 1}),
    "unipc-2-bh1": (unipc, {"order": 2}),
    "unipc-2-bh2": (unipc, {"order": 2, "variant": "bh2"}),
    "unipc-3": (unipc, {}),
    "unip-3": (unipc, {"corrector": False}),
    "edm-stochastic-0": (edm_stochastic, {}),
}
NOISY = {
    "ddim-1": (ddim, {"eta": 1.0}),
    "ddim-0.5": (ddim, {"eta": 0.5}),
    "ancestral-small": (ancestral, {}),
    "ancestral-large": (ancestral, {"variance": "large"}),
    "dpmpp-2m-sde-midpoint": (dpmpp_2m_sde, {}),
    "dpmpp-2m-sde-heun": (dpmpp_2m_sde, {"form": "heun"}),
    "edm-stochastic": (edm_stochastic, {"s_churn": 4.0, "s_max": 10.0}),
}


def each(table):
    return pytest.mark.parametrize(("solver", "own"), table.values(), ids=table.keys())


def silent(x):
    raise AssertionError("a deterministic solver drew noise")


def uniform(n):
    """Times of n steps uniform in lambda from -3 to 3."""
    return P.t_of(torch.exp(-torch.linspace(-3, 3, n + 1, dtype=torch.float64)))


# Orders of convergence


class Flow:
    """The mixture's probability flow in x / alpha from 64 starts at lambda = -3: dx/dlambda = D - x."""

    def __init__(self, mixture):
        self.mixture = mixture
        self.start = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 2))) * math.exp(3)
        self.end = self.at(3.0)

    def denoise(self, x, t, cond=None):
        return self.mixture.denoise(P, x, t)

    def at(self, lam):
        """The exact flow at lambda, (64, 2)."""

        def field(at, flat):
            x = torch.from_numpy(flat.copy()).reshape(self.start.shape)
            return (
                (self.mixture.denoise(VE(), x, torch.tensor(math.exp(-at), dtype=torch.float64)) - x).flatten().numpy()
            )

        out = solve_ivp(field, (-3.0, lam), self.start.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-13)
        return torch.from_numpy(out.y[:, -1].copy()).reshape(self.start.shape)

    def error(self, solver, n, past, own):
        """Root mean square error at lambda = 3 of n steps, the first `past` of them exact."""
        times = uniform(n)
        xs = [
            P.alpha(t) * self.at(-3 + 6 / n * j) if j else P.alpha(t) * self.start
            for j, t in enumerate(times[: past + 1])
        ]
        if hasattr(solver, "plan"):
            steps = solver.plan(Nodes.of(P, times), **own, **({"past": past} if past else {}))
            seen = [self.denoise(x, t) for x, t in zip(xs[:past], times, strict=False)]
            x = multistep.run(self.denoise, xs[past], times[past:], steps, silent, past=seen[::-1])
        else:
            x = solver.solve(self.denoise, P, xs[0], times, silent, **own)
        return (x / P.alpha(times[-1]) - self.end).square().mean().sqrt().item()

    def slope(self, solver, past, own):
        coarse, fine = (self.error(solver, n, past, own) for n in (160, 320))
        return math.log2(coarse / fine)


@pytest.fixture
def flow(mixture):
    return Flow(mixture)


FREE = {"lower_final": False}


@pytest.mark.parametrize(
    ("solver", "past", "own", "order"),
    [
        (ddim, 0, {}, 1),
        (dpmpp_2m, 0, {}, 2),
        (dpmpp_2m, 1, {}, 2),
        (dpmpp_2m_sde, 1, {"eta": 0.0, "form": "heun"}, 2),
        (dpmpp_3m, 2, {}, 3),
        (dpmpp_3m, 2, {"form": "published"}, 2),
        (unipc, 0, {"order": 1, **FREE}, 2),
        (unipc, 1, {"order": 2, "variant": "bh1", **FREE}, 3),
        (unipc, 1, {"order": 2, "variant": "bh2", **FREE}, 3),
        (unipc, 2, {"order": 3, "variant": "bh1", **FREE}, 4),
        (unipc, 2, {"order": 3, "variant": "bh2", **FREE}, 4),
        (unipc, 1, {"order": 2, "corrector": False, **FREE}, 2),
        (unipc, 2, {"order": 3, "corrector": False, **FREE}, 3),
        (unipc, 0, {}, unipc.ORDER),  # lower_final: its last step is of first order
        (edm_stochastic, 0, {}, 2),
    ],
)
def test_order_of_convergence(solver, past, own, order, flow):
    """The slope from 160 to 320 steps. `published` is the control: one factor of 2 away, and an order lower.

    The next order's term is still in these slopes: 0.04 of it with order 4, 0.07 with `lower_final`, whose one step of
    first order stands beside many of fourth, 0.02 with the others; the band is 0.1.
    """
    assert flow.slope(solver, past, own) == pytest.approx(order, abs=0.1)


def test_without_given_history_the_first_step_caps_the_third_order(flow):
    """Why `dpmpp_3m.ORDER` is 2: the first step's error, of order h^2, shows below the others' h^3 on fine grids."""
    errors = [flow.error(dpmpp_3m, n, 0, {}) for n in (80, 160, 320, 640)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[0] > slopes[1] > slopes[2]
    assert 2 < slopes[2] < 2.5


def test_few_steps_end_in_lower_orders():
    nodes = Nodes.of(P, torch.cat([uniform(dpmpp_3m.FEW - 2), torch.zeros(1)]))
    many = Nodes.of(P, torch.cat([uniform(dpmpp_3m.FEW - 1), torch.zeros(1)]))

    def used(steps):
        return [len(s.predictor.weights) for s in steps][-3:]

    assert used(dpmpp_3m.plan(nodes)) == [3, 2, 1]
    assert used(dpmpp_3m.plan(nodes, lower_final=False)) == [3, 3, 1]
    assert used(dpmpp_3m.plan(many)) == [3, 3, 1]
    assert used(unipc.plan(many)) == [3, 2, 1]
    assert used(unipc.plan(many, lower_final=False)) == [3, 3, 1]


# Weak orders


def variance_error(solver, n, own):
    """Var(x) / (alpha^2 / 4 + sigma^2) - 1 at lambda = 3: exact up to rounding, see the head of the file."""
    times = uniform(n)

    def variance(t):
        return P.alpha(t) ** 2 / 4 + P.sigma(t) ** 2

    def denoiser(x, t, cond):
        return P.alpha(t) / 4 / variance(t) * x

    drawn_so_far = 0

    def source(x):
        nonlocal drawn_so_far
        drawn_so_far += 1
        return torch.nn.functional.one_hot(torch.tensor(drawn_so_far), x.shape[0]).double()

    x = torch.zeros(n + 1, dtype=torch.float64)
    x[0] = variance(times[0]).sqrt()
    return float(solver.solve(denoiser, P, x, times, source, **own).square().sum() / variance(times[-1])) - 1


@pytest.mark.parametrize(
    ("solver", "own", "order"),
    [
        (ddim, {"eta": 0.5}, 1),
        (ddim, {"eta": 1.0}, 1),
        (ancestral, {"variance": "small"}, 1),
        (ancestral, {"variance": "large"}, 1),
        (dpmpp_2m_sde, {"form": "midpoint"}, 2),
        (dpmpp_2m_sde, {"form": "heun"}, 2),
        (dpmpp_2m_sde, {"form": "midpoint", "eta": 0.5}, 2),
        (dpmpp_2m_sde, {"form": "heun", "eta": 2.0}, 2),
        (edm_stochastic, {"s_churn": 4.0}, 2),
    ],
)
def test_weak_order(solver, own, order):
    """The slope of the variance's error from 320 to 640 steps."""
    coarse, fine = (abs(variance_error(solver, n, own)) for n in (320, 640))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def test_too_much_noise_is_a_bias_that_steps_do_not_cure():
    """Negative control: EDM's s_noise of 1.01 puts in 2 % more variance; no refinement takes that out again."""
    own = {"s_churn": 4.0, "s_noise": 1.01}
    assert variance_error(edm_stochastic, 640, own) > 0.8 * variance_error(edm_stochastic, 320, own) > 1e-3
    assert abs(variance_error(edm_stochastic, 640, {"s_churn": 4.0})) < 1e-4


def test_the_posterior_s_two_variances():
    """Each is right in one step for the data it is meant for: `small` for one point, `large` for N(0, 1) under `vp`."""
    nodes = Nodes.of(P, P.t_of(torch.tensor([2.0, 0.5], dtype=torch.float64)))
    (a, b), (s, r) = nodes.alpha, nodes.sigma
    step = {v: ancestral.plan(nodes, variance=v)[0].predictor for v in ("small", "large")}
    point = step["small"].scale ** 2 * s**2 + step["small"].noise ** 2
    assert point == pytest.approx(r**2, rel=1e-14)
    # D = alpha x for N(0, 1), and Var(x) = 1 at both ends; b is the other end's alpha
    normal = (step["large"].scale + step["large"].weights[0] * a) ** 2 + step["large"].noise ** 2
    assert normal == pytest.approx(1, rel=1e-14)
    assert step["small"].noise < 0.5 * step["large"].noise
    assert b > a


# The ends of a grid, and what every solver promises


@each(QUIET)
def test_data_in_one_point_are_exact_at_any_step(solver, own, process, gen):
    """D is constant, so x_t = alpha m + sigma eps; the flow starts where alpha = 0. Weights that do not sum to
    alpha (1 - e^-h) would miss it."""
    m, eps = torch.tensor([[0.5, -1.0]]).double(), torch.randn(6, 2, generator=gen, dtype=torch.float64)
    grid = grids.to_times(process, grids.karras(7, 0.05, 20.0, 7.0))[:-1]
    if process.name == "rectified-flow":
        grid[0] = 1
    first, last = (process.alpha(t) * m + process.sigma(t) * eps for t in (grid[0], grid[-1]))
    got = solver.solve(lambda x, t, cond: m.expand_as(x), process, first, grid, silent, **own)
    torch.testing.assert_close(got, last, rtol=0, atol=1e-12)  # |x| <= 60 in x / alpha, 7 steps: rounding below 1e-13


@each(QUIET | NOISY)
def test_the_first_step_from_pure_noise(solver, own, mixture, gen):
    """From alpha = 0, x is noise of which nothing is known but D: x_u = sigma_u (old x + new xi) + alpha_u D, with
    old^2 + new^2 = 1. A corrector has one evaluation at finite lambda, the new one, which then stands for D."""
    process, x = RectifiedFlow(), torch.randn(6, 2, generator=gen, dtype=torch.float64)
    xi = torch.randn(6, 2, generator=gen, dtype=torch.float64)
    grid = torch.tensor([1.0, 0.7, 0.4, 0.0], dtype=torch.float64)
    seen = []

    def denoiser(x, t, cond):
        seen.append(mixture.denoise(process, x, t))
        return seen[-1]

    path = []
    out = solver.solve(denoiser, process, x, grid, lambda x: xi, trace=lambda t, x: path.append(x), **own)
    old_only = (solver, own) in QUIET.values() or solver is edm_stochastic
    new = 0.0 if old_only else own["eta"] if solver is ddim else 1.0
    level = 1.0 if own.get("variance") == "large" else 0.7
    said = seen[1] if solver is unipc and own.get("corrector", True) else seen[0]
    want = 0.7 * math.sqrt(1 - new**2) * x + level * new * xi + 0.3 * said
    torch.testing.assert_close(path[1], want, rtol=0, atol=1e-14)
    assert torch.equal(out, seen[-1])
    assert all(point.isfinite().all() for point in path)


@each(QUIET | NOISY)
def test_protocol(solver, own, process, gen):
    """Calls counted, label passed on, grid traced, x and random state left alone, float32 kept, noise as named."""
    calls, draws, seen = [], [], []

    def denoiser(x, t, cond):
        calls.append((float(t), cond))
        return 0.5 * x

    def noise(x):
        draws.append(x)
        return drawn(gen)(x)

    steps, label = 6, torch.tensor([1, 2])
    grid = grids.to_times(process, grids.karras(steps, 0.01, 20.0, 7.0))
    x = torch.randn(2, 3, 4, 4, generator=gen)
    kept, state = x.clone(), torch.get_rng_state()
    out = solver.solve(
        denoiser, process, x, grid, noise, cond=label, trace=lambda t, x: seen.append((float(t), x)), **own
    )
    assert len(calls) == (2 * steps - 1 if solver is edm_stochastic else steps)
    assert len(calls) == evaluations(solver.solve, process, grid, **own)
    assert all(c is label for _, c in calls)
    assert calls[0][0] == float(grid[0])
    assert (out.shape, out.dtype) == (x.shape, torch.float32)
    assert torch.equal(x, kept)
    assert torch.equal(state, torch.get_rng_state())
    assert [t for t, _ in seen] == grid.tolist()
    assert seen[0][1] is x
    assert torch.equal(seen[-1][1], out)
    if (solver, own) in QUIET.values():
        assert not draws
    elif solver is edm_stochastic:  # at the levels up to s_max, the last one included
        assert len(draws) == (grids.karras(steps, 0.01, 20.0, 7.0)[:-1] <= own["s_max"]).sum() < steps
    else:
        assert len(draws) == steps - 1


@each(QUIET | NOISY)
def test_a_grid_that_does_not_end_at_zero_is_not_evaluated_at_its_end(solver, own, mixture, gen):
    calls = []

    def denoiser(x, t, cond):
        calls.append(float(t))
        return mixture.denoise(P, x, t)

    grid = uniform(5)
    x = torch.randn(3, 2, generator=gen, dtype=torch.float64)
    assert solver.solve(denoiser, P, x, grid, drawn(gen), **own).isfinite().all()
    # Heun's step needs the velocity at its end; the others would evaluate there for nothing
    assert len(calls) == (10 if solver is edm_stochastic else 5)


# Refusals


@pytest.mark.parametrize(
    ("solver", "own"),
    [
        (ddim, {"eta": -0.1}),
        (ddim, {"eta": 1.1}),
        (ddim, {"eta": math.nan}),
        (dpmpp_2m_sde, {"eta": -1.0}),
        (dpmpp_2m_sde, {"eta": math.nan}),
        (unipc, {"order": 0}),
        (unipc, {"order": 4}),
        (edm_stochastic, {"s_churn": -1.0}),
        (edm_stochastic, {"s_churn": 1.0, "s_min": 2.0, "s_max": 1.0}),
        (edm_stochastic, {"s_churn": 1.0, "s_noise": 0.0}),
    ],
)
def test_settings_out_of_range(solver, own):
    with pytest.raises(RecipeError) as caught:
        solver.solve(lambda x, t, cond: x, VE(), torch.zeros(1), grids.given([2.0, 1.0]), silent, **own)
    assert caught.value.hint
