"""SA-Solver against closed forms: weights, orders weak and strong, the authors' own numbers, and the known mistakes.

The problem is a mixture of three Gaussians whose denoiser is exact, on a variance-preserving process whose time is
-lambda, from lambda = -3 to 3; the reference is the probability-flow ODE by DOP853 to 1e-12.
"""

from __future__ import annotations

import gc
import json
import math
import weakref
from itertools import pairwise
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from gentk.errors import RecipeError
from gentk.processes import grids
from gentk.processes.schedules import VE, VP, RectifiedFlow
from gentk.solvers import drawn, exponential, multistep, sa_solver
from gentk.solvers.multistep import Nodes, Step, Update

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "sa_solver.json").read_text())
STEPS = (20, 40, 80, 160, 320)


class InLambda:
    """Variance preserving, t = -lambda: a grid uniform in lambda is exact to rounding."""

    name, t_min, t_max = "lambda", -3.0, 3.0

    def alpha(self, t):
        return (1 + torch.exp(2 * t)) ** -0.5

    def sigma(self, t):
        return (1 + torch.exp(-2 * t)) ** -0.5


P = InLambda()


def uniform(n):
    return -torch.linspace(-3, 3, n + 1, dtype=torch.float64)


def silent(x):
    raise AssertionError("a deterministic solver drew noise")


class Problem:
    def __init__(self, kind):
        means = [[1.5, 0.2], [-1.0, 0.8], [0.3, -1.4]]
        w, m, v = (torch.tensor(q, dtype=torch.float64) for q in ([0.3, 0.5, 0.2], means, [0.25, 0.4, 0.16]))
        self.mixture = kind(w, m, v)  # the notes' mixture, to the last digit of float64: the fixture was made with it
        rng = np.random.default_rng(0)
        k = rng.choice(3, 64, p=[0.3, 0.5, 0.2])
        x0 = self.mixture.m.numpy()[k] + np.sqrt(self.mixture.v.numpy()[k])[:, None] * rng.standard_normal((64, 2))
        alpha, sigma = (float(f(torch.tensor(3.0).double())) for f in (P.alpha, P.sigma))
        self.start = torch.from_numpy(alpha * x0 + sigma * rng.standard_normal((64, 2)))

        def field(lam, flat):
            x = torch.from_numpy(flat.reshape(64, 2).copy())
            t = torch.tensor(-lam).double()
            alpha = float(P.alpha(t))
            return (-(alpha**2) * x + alpha * self.denoise(x, t)).numpy().ravel()

        self.path = solve_ivp(
            field, (-3, 3), self.start.numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-13, dense_output=True
        ).sol

    def denoise(self, x, t, cond=None):
        return self.mixture.denoise(P, x, t)

    def at(self, t):
        return torch.from_numpy(self.path(-float(t)).reshape(64, 2).copy())

    def error(self, x):
        return (x - self.at(-3.0)).square().mean().sqrt().item()

    def errors(self, *, history, steps=STEPS, **settings):
        """RMS error for each number of steps, with exact values at the first `history` nodes."""
        found = []
        for n in steps:
            grid = uniform(n)
            plan = sa_solver.plan(Nodes.of(P, grid), mode="more", lower_final=False, past=history, **settings)
            past = [self.denoise(self.at(t), t) for t in grid[:history].flip(0)]
            found.append(
                self.error(multistep.run(self.denoise, self.at(grid[history]), grid[history:], plan, silent, past=past))
            )
        return found


@pytest.fixture
def problem(mixture):
    return Problem(type(mixture))


def slopes(errors):
    return [math.log2(a / b) for a, b in pairwise(errors)]


# name -> settings, exact history, order, errors of the notes at 20, 40, 80, 160, 320 steps
SCHEMES = {
    "P1": ({"predictor": 1, "corrector": 0}, 0, 1, (6.85e-2, 3.45e-2, 1.73e-2, 8.66e-3, 4.33e-3)),
    "P2": ({"predictor": 2, "corrector": 0}, 1, 2, (9.67e-3, 2.30e-3, 5.63e-4, 1.39e-4, 3.46e-5)),
    "P3": ({"predictor": 3, "corrector": 0}, 2, 3, (1.11e-3, 1.44e-4, 1.83e-5, 2.32e-6, 2.92e-7)),
    "P4": ({"predictor": 4, "corrector": 0}, 3, 4, (4.76e-4, 3.84e-5, 2.72e-6, 1.76e-7, 1.11e-8)),
    "P1C1": ({"predictor": 1, "corrector": 1}, 0, 1, (4.58e-2, 2.90e-2, 1.60e-2, 8.33e-3, 4.25e-3)),
    "P1C2": ({"predictor": 1, "corrector": 2}, 0, 2, (1.33e-2, 3.37e-3, 8.44e-4, 2.11e-4, 5.27e-5)),
    "P2C3": ({"predictor": 2, "corrector": 3}, 1, 3, (2.24e-3, 2.92e-4, 3.77e-5, 4.79e-6, 6.04e-7)),
    "P3C4": ({"predictor": 3, "corrector": 4}, 2, 4, (5.48e-4, 4.05e-5, 2.97e-6, 1.99e-7, 1.28e-8)),
    "P3C4 PECE": (
        {"predictor": 3, "corrector": 4, "evaluate": "pece"}, 2, 4, (1.90e-4, 1.36e-5, 9.99e-7, 6.72e-8, 4.34e-9)
    ),
    "P2 rescaled": (
        {"predictor": 2, "corrector": 0, "rescale": True}, 1, 2, (1.81e-2, 4.14e-3, 9.96e-4, 2.44e-4, 6.05e-5)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
def test_order_of_convergence(problem, name):
    settings, history, order, notes = SCHEMES[name]
    errors = problem.errors(history=history, **({"rescale": False} | settings))
    assert slopes(errors)[-1] == pytest.approx(order, abs=0.1)
    assert errors == pytest.approx(notes, rel=6e-3)  # the notes give three digits


def test_the_authors_modes(problem):
    """Their fall to first order at the end caps the order at 2 where the last step is not corrected."""
    few = [problem.error(sa_solver.solve(problem.denoise, P, problem.start, uniform(n), silent)) for n in STEPS]
    assert few == pytest.approx((5.73e-4, 8.31e-5, 1.58e-5, 3.51e-6, 8.44e-7), rel=6e-3)
    more = [
        problem.error(sa_solver.solve(problem.denoise, P, problem.start, uniform(n), silent, mode="more"))
        for n in STEPS
    ]
    assert slopes(more)[-1] == pytest.approx(3.57, abs=0.05)


def test_negative_control_weights_at_shifted_nodes(problem, monkeypatch):
    """One node a step off leaves the scheme consistent, and first order."""
    real = exponential.weights
    monkeypatch.setattr(sa_solver, "weights", lambda a, h, tau, v: real(a, h, tau, [q + (q > 1) for q in v]))
    assert slopes(problem.errors(history=2, predictor=3, corrector=0, rescale=False))[-1] < 1.3


# --- weights against 50-digit quadrature


def quadrature(alpha, h, tau, v):
    with mpmath.workdps(50):
        z = mpmath.mpf(h) * (1 + mpmath.mpf(tau) ** 2)
        nodes = [mpmath.mpf(q) for q in v]

        def basis(j, at):
            return mpmath.fprod((at - q) / (nodes[j] - q) for k, q in enumerate(nodes) if k != j)

        return [
            float(alpha * z * mpmath.quad(lambda u, j=j, z=z: mpmath.exp(-z * u) * basis(j, u), [0, 0.5, 1]))
            for j in range(len(v))
        ]


def absolute_lambda(alpha, lam, h, tau, v, dtype):
    """The same integral by monomials in lambda itself, as public code has it: exact, and ruined by rounding."""
    c = dtype(1 + tau**2)
    lo, hi = dtype(lam - h), dtype(lam)
    nodes = np.asarray([lam - q * h for q in v], dtype=dtype)
    powers = [c * (np.exp(c * (hi - hi)) - np.exp(c * (lo - hi))) / c]
    for k in range(1, len(v)):
        powers.append(hi**k - lo**k * np.exp(c * (lo - hi)) - dtype(k) / c * powers[-1])
    inverse = np.linalg.inv(np.vander(nodes, increasing=True)).astype(dtype)
    return alpha * (np.asarray(powers, dtype=dtype) @ inverse)


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("h", [0.05, 0.2, 1.0, 3.0])
def test_weights_are_the_integrals(h, tau):
    """Rounding: solving a 4 x 4 Vandermonde system with nodes of order one loses at most two digits of sixteen."""
    for v in ([1.0], [1.0, 2.3], [0.0, 1.0], [1.0, 1.7, 3.1], [0.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.5], [0.0, 1, 1.6, 3]):
        got, want = exponential.weights(0.7, h, tau, v), quadrature(0.7, h, tau, v)
        assert got == pytest.approx(want, rel=0, abs=1e-12 * max(map(abs, want)))
        assert sum(got) == pytest.approx(-0.7 * math.expm1(-(1 + tau**2) * h), rel=1e-13)


def test_moments_at_the_seam_of_series_and_recursion():
    for z in (1e-6, 0.3, 1.9999, 2.0001, 9.0, 80.0):
        with mpmath.workdps(50):
            integrals = [mpmath.quad(lambda u, k=k, z=z: mpmath.exp(-z * u) * u**k, [0, 0.1, 0.5, 1]) for k in range(4)]
            want = [float(z * i) for i in integrals]
        assert exponential.moments(z, 4) == pytest.approx(want, rel=1e-13)


def test_negative_control_float32_in_absolute_lambda():
    """float64 agrees to 1e-7 relative where float32 has lost the answer (order 4, lambda = -4, h = 0.05)."""
    v = [1.0, 2.0, 3.0, 4.0]
    want = np.array(exponential.weights(1.0, 0.05, 0.0, v))
    worst = {d: np.abs(absolute_lambda(1.0, -4.0, 0.05, 0.0, v, d) / want - 1).max() for d in (np.float64, np.float32)}
    assert worst[np.float64] < 1e-6
    assert worst[np.float32] > 0.1


# --- the authors' code: numbers that it gave for these starts and noises, in float64


@pytest.mark.parametrize("case", FIXTURE["cases"], ids=lambda c: "-".join(str(v) for v in list(c.values())[:5]))
def test_the_authors_trajectory(problem, case):
    """Their file at commit 876f3dd, linear VP, t from 1 to 1e-3 in 20 steps; `more` ends by denoising."""
    process, n = VP(), 20
    start, noises = (torch.tensor(FIXTURE[k], dtype=torch.float64) for k in ("start", "noises"))
    times = torch.linspace(1, 1e-3, n + 1, dtype=torch.float64)
    grid = times if case["mode"] == "few" else torch.cat([times, times.new_zeros(1)])
    settings = {k: case[k] for k in ("predictor", "corrector", "evaluate", "tau", "mode")}
    noisy = [i for i in range(1, n + 1) if not (case["mode"] == "few" and i == n)]
    if settings["tau"] == "interval":  # their default: tau = 1 for t in [0.2, 0.8], read at the step's end
        lo, hi = (float(process.sigma(t) / process.alpha(t)) for t in torch.tensor([0.2, 0.8]).double())
        settings["tau"] = [(1.0, lo, hi)]
        noisy = [i for i in noisy if 0.2 <= times[i] <= 0.8]
    own = iter(noises[noisy])  # theirs draws one more at step 0, and at the steps that need none
    called = []

    def denoiser(x, t, cond):
        called.append(t)
        return problem.mixture.denoise(process, x, t)

    got = sa_solver.solve(denoiser, process, start, grid, lambda x: next(own), **settings)
    assert (got - torch.tensor(case["x"], dtype=torch.float64)).abs().max() < 1e-12
    more = 2 if case["corrector"] else 1  # theirs denoises again at the point that an uncorrected step has evaluated
    counts = {("few", "pec"): n, ("few", "pece"): 2 * n - 1, ("more", "pec"): n + more, ("more", "pece"): 2 * n + 1}
    assert len(called) == counts[case["mode"], case["evaluate"]]


def test_negative_control_tau_at_the_other_end(problem):
    case = next(c for c in FIXTURE["cases"] if c["tau"] == "interval" and c["mode"] == "few")
    process, times = VP(), torch.linspace(1, 1e-3, 21, dtype=torch.float64)
    lo, hi = (float(process.sigma(t) / process.alpha(t)) for t in torch.tensor([0.2, 0.8]).double())
    start, noises = (torch.tensor(FIXTURE[k], dtype=torch.float64) for k in ("start", "noises"))
    own = iter(noises[[i for i in range(1, 20) if 0.2 <= times[i - 1] <= 0.8]])
    got = sa_solver.solve(
        lambda x, t, cond: problem.mixture.denoise(process, x, t), process, start, times, lambda x: next(own),
        tau=[(1.0, lo, hi)], tau_at="start",
    )  # fmt: skip
    assert (got - torch.tensor(case["x"], dtype=torch.float64)).abs().max() > 0.1


# --- weak order: the variance of scalar Gaussian data, propagated exactly


def variance_error(n, *, fresh=False, **settings):
    """Relative error of Var x at lambda = 3 for data N(0, 1/4). State and noises are linear: no Monte Carlo.

    Every quantity is a row of coefficients on (unit start, xi_1, ..., xi_n); `fresh`: other noises for the corrector.
    """
    grid, data_variance = uniform(n), 0.25
    nodes = Nodes.of(P, grid)
    gain = [a * data_variance / (a**2 * data_variance + s**2) for a, s in zip(nodes.alpha, nodes.sigma, strict=True)]
    width = 1 + n * (2 if fresh else 1)
    x = np.zeros(width)
    x[0] = math.sqrt(nodes.alpha[0] ** 2 * data_variance + nodes.sigma[0] ** 2)
    seen = [gain[0] * x]
    for i, step in enumerate(sa_solver.plan(nodes, mode="more", rescale=False, lower_final=False, **settings)):

        def update(u, x, noise):
            y = u.scale * x + sum(w * d for w, d in zip(u.weights, seen, strict=False))
            y[noise] += u.noise
            return y

        before, x = x, update(step.predictor, x, 1 + i)
        seen.insert(0, gain[i + 1] * x)
        if step.corrector:
            x = update(step.corrector, before, 1 + i + (n if fresh else 0))
    return (x @ x) / (nodes.alpha[-1] ** 2 * data_variance + nodes.sigma[-1] ** 2) - 1


@pytest.mark.parametrize(
    ("settings", "notes", "order"),
    [
        ({"predictor": 1, "corrector": 0, "tau": 1.0}, (-2.46e-1, -1.35e-1, -7.07e-2, -3.62e-2, -1.83e-2, -9.23e-3), 1),
        ({"predictor": 2, "corrector": 0, "tau": 1.0}, (6.16e-2, 1.50e-2, 3.67e-3, 9.07e-4, 2.25e-4, 5.62e-5), 2),
        ({"predictor": 3, "corrector": 4, "tau": 1.0}, (1.24e-2, 2.47e-3, 6.10e-4, 1.53e-4, 3.83e-5, 9.57e-6), 2),
    ],
    ids=["P1", "P2", "P3C4"],
)
def test_weak_order(settings, notes, order):
    errors = [variance_error(n, **settings) for n in (*STEPS, 640)]
    assert errors == pytest.approx(notes, rel=6e-3)
    assert slopes(np.abs(errors))[-1] == pytest.approx(order, abs=0.1)


def test_weak_error_grows_with_tau_at_few_steps():
    assert variance_error(20, predictor=2, corrector=0, tau=1.4) == pytest.approx(0.12, abs=0.005)
    assert variance_error(20, predictor=3, corrector=4, tau=1.4) == pytest.approx(0.042, abs=0.0005)
    assert variance_error(20, predictor=3, corrector=4, tau=0.5) == pytest.approx(0.0016, abs=0.00005)
    assert variance_error(640, predictor=3, corrector=4, tau=0.0) == pytest.approx(-4.47e-10, rel=0.02)


def test_negative_control_fresh_noise_in_the_corrector():
    """It makes the weak order one, and the variance at 20 steps wrong by a third."""
    errors = [variance_error(n, fresh=True, predictor=3, corrector=4, tau=1.0) for n in (20, 320, 640)]
    assert errors[0] == pytest.approx(-0.35, abs=0.01)
    assert slopes(np.abs(errors[1:]))[0] == pytest.approx(0.98, abs=0.03)


# --- strong order: noises of a coarse grid made from those of a fine one


def coupled(problem, n, finest, fine_noise, **settings):
    lam = torch.linspace(-3, 3, finest + 1, dtype=torch.float64)
    ratio, h, tau = finest // n, 6 / finest, settings["tau"]
    noises = []
    for i in range(n):
        total = 0
        for j in range(i * ratio, (i + 1) * ratio):
            left = float(lam[(i + 1) * ratio] - lam[j + 1])
            total = total + math.exp(-(tau**2) * left) * exponential.spread(h, tau) * fine_noise[j]
        noises.append(total / exponential.spread(h * ratio, tau))
    own = iter(noises)
    plan = sa_solver.plan(Nodes.of(P, uniform(n)), mode="more", rescale=False, lower_final=False, **settings)
    return multistep.run(problem.denoise, problem.start, uniform(n), plan, lambda x: next(own))


def test_strong_order(problem, gen):
    """O(tau h + h^s) (the theorem, as the notes recall it): 1 for tau = 1, near the scheme's own for small tau."""
    finest = 1280
    noise = torch.randn(finest, 64, 2, generator=gen, dtype=torch.float64)
    for tau, low, high in ((1.0, 0.75, 1.25), (0.1, 0.9, 2.0)):
        settings = {"predictor": 2, "corrector": 0, "tau": tau}
        reference = coupled(problem, finest, finest, noise, **settings)
        errors = [
            (coupled(problem, n, finest, noise, **settings) - reference).square().mean().sqrt().item()
            for n in (20, 40, 80, 160)
        ]
        overall = math.log2(errors[0] / errors[-1]) / 3
        assert low < overall < high, (tau, errors)
        if tau == 0.1:
            assert errors[0] < 0.03  # the noise's share is tau times smaller than at tau = 1


def test_the_marginal_is_kept_for_every_tau(problem):
    """40 000 samples at 16 steps: covariance within the notes' .008, .014, .022 plus the sampling error .015."""
    n = 40_000
    gen = torch.Generator().manual_seed(1)
    x0 = problem.mixture.sample(n, gen)
    top = torch.tensor(3.0).double()
    start = P.alpha(top) * x0 + P.sigma(top) * torch.randn(n, 2, generator=gen, dtype=torch.float64)
    end = torch.tensor(-3.0).double()
    m, v, w = problem.mixture.m, problem.mixture.v, problem.mixture.w
    mean = w @ m
    second = (w[:, None, None] * (m[:, :, None] * m[:, None] + v[:, None, None] * torch.eye(2).double())).sum(0)
    want = P.alpha(end) ** 2 * (second - mean[:, None] * mean) + P.sigma(end) ** 2 * torch.eye(2)
    gap = {}
    for tau in (0.0, 1.0, 1.4):
        plan = sa_solver.plan(Nodes.of(P, uniform(16)), mode="more", rescale=False, lower_final=False, tau=tau)
        gap[tau] = (multistep.run(problem.denoise, start, uniform(16), plan, drawn(gen)).T.cov() - want).abs().max()
    assert gap[0.0] < 0.008 + 0.015
    assert gap[1.0] < 0.014 + 0.015
    assert gap[1.4] < 0.022 + 0.015


# --- ends, settings, history


def test_every_process_gives_the_same_samples(problem, process, gen):
    """The scheme is invariant under x -> x / alpha: one answer in variance-exploding coordinates."""
    sigmas, x = grids.karras(12, 0.01, 20.0, 7.0), 20 * torch.randn(8, 2, generator=gen, dtype=torch.float64)

    def sample(p):
        times = grids.to_times(p, sigmas)
        own = torch.Generator().manual_seed(3)
        return sa_solver.solve(
            lambda x, t, cond: problem.mixture.denoise(p, x, t), p, p.alpha(times[0]) * x, times, drawn(own), tau=0.7
        )

    torch.testing.assert_close(sample(process), sample(VE()), rtol=0, atol=1e-11)  # t_of's rounding, grown by 12 steps


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["few", "more"])
def test_a_flow_may_start_at_pure_noise(problem, gen, tau, mode):
    """alpha = 0 at t = 1: the first step has no history and, for tau > 0, forgets x; the same as the limit t -> 1."""
    flow, noises = RectifiedFlow(), torch.randn(9, 6, 2, generator=gen, dtype=torch.float64)
    x = torch.randn(6, 2, generator=gen, dtype=torch.float64)

    def sample(top):
        own = iter(noises)
        grid = torch.tensor([top, 0.9, 0.75, 0.6, 0.45, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64)
        return sa_solver.solve(
            lambda x, t, cond: problem.mixture.denoise(flow, x, t), flow, x, grid, lambda x: next(own),
            predictor=1, corrector=1, tau=tau, mode=mode,
        )  # fmt: skip

    exact = sample(1.0)
    assert exact.isfinite().all()
    assert (sample(1 - 1e-9) - exact).abs().max() < 1e-6  # one-node steps: continuous in the start


def test_history_leaves_out_the_start_without_signal():
    nodes = Nodes.of(RectifiedFlow(), torch.linspace(1, 0, 9, dtype=torch.float64))
    plan = sa_solver.plan(nodes, mode="more")
    assert [len(s.predictor.weights) for s in plan] == [1, 1, 2, 3, 3, 2, 1, 1]
    assert all(math.isfinite(w) for s in plan for w in (*s.predictor.weights, s.predictor.scale, s.predictor.noise))
    assert plan[0].predictor.scale == pytest.approx(nodes.sigma[1])  # tau = 0: x1 = sigma eps + alpha D


def test_the_last_step_is_the_denoiser(problem):
    nodes = Nodes.of(VE(), grids.karras(5, 0.01, 20.0, 7.0))
    assert sa_solver.plan(nodes, tau=1.0)[-1] == Step(Update(0.0, (1.0,)), evaluate=False)


@pytest.mark.parametrize("settings", [{"predictor": 5}, {"predictor": 0}, {"corrector": 5}, {"corrector": -1}])
def test_orders_out_of_range(settings):
    with pytest.raises(RecipeError, match="orders are 1 to 4"):
        sa_solver.plan(Nodes.of(P, uniform(4)), **settings)


@pytest.mark.parametrize("tau", [-1.0, [(1.0, 2.0, 1.0)], [(-1.0, 0.0, 1.0)], [(1.0, 0.5)], float("nan")])
def test_tau_out_of_range(tau):
    with pytest.raises(RecipeError, match="tau"):
        sa_solver.plan(Nodes.of(P, uniform(4)), tau=tau)


@pytest.mark.parametrize("grid", [[1.0, 1.0, 0.0], [0.5, 1.0, 0.0], [1.0], [1.0, float("nan"), 0.0]])
def test_a_grid_that_does_not_decrease(grid):
    with pytest.raises(RecipeError, match="do not decrease"):
        Nodes.of(VE(), torch.tensor(grid, dtype=torch.float64))


def test_tau_on_intervals_is_read_at_either_end():
    nodes = Nodes.of(VE(), torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.0], dtype=torch.float64))
    for at, noisy in (("end", [True, True, False, False, False]), ("start", [False, True, True, False, False])):
        plan = sa_solver.plan(nodes, tau=[(1.0, 2.0, 4.0)], tau_at=at)
        assert [s.predictor.noise > 0 for s in plan] == noisy


def test_memory_and_time_per_step_do_not_grow(problem):
    """What a step costs is the number of its terms; the loop keeps no more evaluations than the longest needs."""
    plan = sa_solver.plan(Nodes.of(P, uniform(50)), mode="more")
    assert max(len(u.weights) for s in plan for u in (s.predictor, s.corrector) if u) == 4
    alive = weakref.WeakSet()
    most = 0

    def denoiser(x, t, cond):
        nonlocal most
        out = problem.denoise(x, t)
        alive.add(out)
        gc.collect(0)
        most = max(most, len(alive))
        return out

    multistep.run(denoiser, problem.start, uniform(50), plan, silent)
    assert most <= 5  # four in use and the one that is being made
