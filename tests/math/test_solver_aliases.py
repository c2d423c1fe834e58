"""Which solver is which: identities between gentk's solvers, and other libraries' names for them.

Everything runs on the exact denoiser of the mixture in float64, with the same noises on both sides. An identity between
formulas holds to rounding: samples up to 40 in x / alpha, some ten rounded operations a step and 12 steps, none
amplified, are 12 x 10 x 40 x 1.1e-16 = 5e-13, below the 1e-12 asked for.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from gentk.processes import grids
from gentk.processes.schedules import VE, RectifiedFlow
from gentk.solvers import (
    ancestral,
    ddim,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    drawn,
    euler,
    multistep,
    sa_solver,
    unipc,
)
from gentk.solvers.multistep import Nodes

SIGMAS = grids.karras(12, 0.02, 14.0, 7.0)
ADAMS = {"corrector": 0, "rescale": False, "lower_final": False}  # SA-Solver's exact predictor alone


@pytest.fixture
def start(gen):
    return 14 * torch.randn(16, 2, generator=gen, dtype=torch.float64)


@pytest.fixture
def run(mixture, process, start):
    """(solver, settings) -> the end in x / alpha, from the same start and noises."""
    times = grids.to_times(process, SIGMAS)

    def _run(solver, **own):
        noise = drawn(torch.Generator().manual_seed(7))
        return solver.solve(
            lambda x, t, cond: mixture.denoise(process, x, t),
            process,
            process.alpha(times[0]) * start,
            times,
            noise,
            **own,
        )

    return _run


@pytest.fixture
def d(mixture):
    """(x / alpha, sigma / alpha) -> x0, for the other libraries' formulas."""
    return lambda x, s: mixture.denoise(VE(), x, s)


def same(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def other(a, b, least=1e-3):
    """Not the same method, by far more than rounding."""
    assert (a - b).abs().max() > least


# Between gentk's solvers


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_ddim_is_sa_solver_with_one_evaluation(eta, run):
    """tau^2 = -ln(1 - eta^2 (1 - e^(-2h))) / 2h on every step, as one triple around the step's end."""
    h = np.diff(-np.log(SIGMAS[:-1].numpy()))
    tau = np.sqrt(-np.log(1 - eta**2 * -np.expm1(-2 * h)) / (2 * h))
    ends = SIGMAS[1:-1].tolist()
    table = [(t, 0.999 * s, 1.001 * s) for t, s in zip(tau.tolist(), ends, strict=True)]
    same(run(ddim, eta=eta), run(sa_solver, predictor=1, tau=table, **ADAMS))
    if eta not in (0, 1):  # constant at both ends: 0 and 1
        other(run(ddim, eta=eta), run(sa_solver, predictor=1, tau=eta, **ADAMS))


def test_ancestral_sampling_is_ddim_with_eta_1(run):
    same(run(ancestral, variance="small"), run(ddim, eta=1.0))
    other(run(ancestral, variance="large"), run(ddim, eta=1.0))


def test_ddim_is_euler_in_the_noise_level(run, start, d):
    """And so Euler's own solver on `ve`; in another process's time Euler's step is another."""
    same(run(ddim), euler.solve(lambda x, t, cond: d(x, t), VE(), start, SIGMAS, drawn(torch.Generator())))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
def test_2m_sde_heun_is_sa_solver_with_two_evaluations(eta, run):
    want = run(sa_solver, predictor=2, tau=math.sqrt(eta), **ADAMS)
    same(run(dpmpp_2m_sde, eta=eta, form="heun"), want)
    other(run(dpmpp_2m_sde, eta=eta, form="midpoint"), want)
    if eta == 0.5:
        other(run(dpmpp_2m_sde, eta=eta, form="heun"), run(sa_solver, predictor=2, tau=eta, **ADAMS))


def test_2m_as_published_is_the_midpoint_form(run):
    """Not SA-Solver's exact integral, whatever its settings: the two are O(h^3) apart on a step."""
    same(run(dpmpp_2m), run(dpmpp_2m_sde, eta=0.0, form="midpoint"))
    for rescale in (False, True):
        other(run(dpmpp_2m), run(sa_solver, predictor=2, corrector=0, rescale=rescale, lower_final=False))
    gap = []
    for h in (0.1, 0.05):
        nodes = Nodes.of(VE(), torch.exp(-h * torch.arange(3, dtype=torch.float64)))
        a, b = dpmpp_2m.plan(nodes)[1], sa_solver.plan(nodes, predictor=2, mode="more", **ADAMS)[1]
        gap.append(abs(a.predictor.weights[1] - b.predictor.weights[1]))
    assert math.log2(gap[0] / gap[1]) == pytest.approx(2, abs=0.1)  # times D_0 - D_1 = O(h)


def test_3m_corrected_is_sa_solver_with_three_evaluations(run):
    want = run(sa_solver, predictor=3, **ADAMS)
    same(run(dpmpp_3m, form="corrected", lower_final=False), want)
    other(run(dpmpp_3m, form="published", lower_final=False), want)
    other(run(dpmpp_3m, form="corrected"), want)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_bh1_is_sa_solver_s_few_steps(order, run):
    want = run(sa_solver, predictor=order, corrector=order + 1)
    same(run(unipc, order=order, variant="bh1"), want)
    other(run(unipc, order=order, variant="bh2"), want)


def test_unip_2_bh2_is_2m_as_published(run):
    same(run(unipc, order=2, variant="bh2", corrector=False, lower_final=False), run(dpmpp_2m))
    other(run(unipc, order=2, variant="bh1", corrector=False, lower_final=False), run(dpmpp_2m))


def test_the_identities_hold_from_alpha_zero(mixture, start):
    """Where h is infinite and the evaluation at lambda = -inf is in nobody's history."""
    process, grid = RectifiedFlow(), torch.linspace(1, 0, 9, dtype=torch.float64)

    def go(solver, **own):
        noise = drawn(torch.Generator().manual_seed(7))
        return solver.solve(lambda x, t, cond: mixture.denoise(process, x, t), process, start / 14, grid, noise, **own)

    same(go(ddim), go(sa_solver, predictor=1, **ADAMS))
    same(go(ddim, eta=1.0), go(ancestral))
    same(go(dpmpp_2m_sde, form="heun"), go(sa_solver, predictor=2, tau=1.0, **ADAMS))
    same(go(dpmpp_3m, lower_final=False), go(sa_solver, predictor=3, **ADAMS))
    for order in (1, 2, 3):
        same(go(unipc, order=order), go(sa_solver, predictor=order, corrector=order + 1))


# The formulas of k-diffusion, UniPC and EDM, written out in x / alpha and sigma


def test_k_diffusion_euler_ancestral(run, start, d):
    noise, x = drawn(torch.Generator().manual_seed(7)), start
    for s, r in pairwise(SIGMAS):
        up = min(r, (r**2 * (s**2 - r**2) / s**2).sqrt())
        x0 = d(x, s)
        x = x + (x - x0) / s * ((r**2 - up**2).sqrt() - s)
        if r > 0:
            x = x + up * noise(x)
    same(run(ancestral), x)
    same(run(ddim, eta=1.0), x)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("form", ["midpoint", "heun"])
def test_k_diffusion_dpmpp_2m_and_its_sde(eta, form, run, start, d):
    noise, x, old, last = drawn(torch.Generator().manual_seed(7)), start, None, None
    for s, r in pairwise(SIGMAS.tolist()):
        x0 = d(x, torch.tensor(s, dtype=torch.float64))
        if r == 0:
            x = x0
            break
        h = math.log(s / r)
        z = h + eta * h
        x = r / s * math.exp(-eta * h) * x + (1 - math.exp(-z)) * x0
        if old is not None:
            factor = (1 - math.exp(-z)) / 2 if form == "midpoint" else 1 - (1 - math.exp(-z)) / z
            x = x + factor * h / last * (x0 - old)
        if eta:
            x = x + r * math.sqrt(1 - math.exp(-2 * eta * h)) * noise(x)
        old, last = x0, h
    same(run(dpmpp_2m_sde, eta=eta, form=form), x)
    if eta == 0 and form == "midpoint":
        same(run(dpmpp_2m), x)


def test_k_diffusion_dpmpp_3m_is_published_but_for_its_second_step(mixture, run, start, d):
    """Without noise: the published third order, warmed up with the exact line, not the midpoint form; never lowered."""
    x, seen, lam = start, [], [-math.log(s) for s in SIGMAS[:-1].tolist()]
    for i, (s, r) in enumerate(pairwise(SIGMAS[:-1].tolist())):
        seen.insert(0, d(x, torch.tensor(s, dtype=torch.float64)))
        h = lam[i + 1] - lam[i]
        phi2 = math.expm1(-h) / h + 1
        x = r / s * x - math.expm1(-h) * seen[0]
        if i == 1:
            x = x + phi2 * h / (lam[1] - lam[0]) * (seen[0] - seen[1])
        elif i > 1:
            r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
            near, far = (seen[0] - seen[1]) / r0, (seen[1] - seen[2]) / r1
            curve = (near - far) / (r0 + r1)
            x = x + phi2 * (near + r0 * curve) - (phi2 / h - 0.5) * curve
    want = d(x, SIGMAS[-2])
    nodes = Nodes.of(VE(), SIGMAS)
    plans = {form: dpmpp_3m.plan(nodes, form=form, lower_final=False) for form in ("corrected", "published")}
    both = [*plans["corrected"][:2], *plans["published"][2:]]
    same(multistep.run(lambda x, t, cond: d(x, t), start, SIGMAS, both, drawn(torch.Generator())), want)
    other(run(dpmpp_3m, form="published", lower_final=False), want, 5e-5)  # the second step's O(h^3) alone
    other(run(dpmpp_3m, form="corrected", lower_final=False), want)


def unipc_step(x, s, r, at, seen, bh, rho):
    """The paper's step in x / alpha from sigma s to r, by `seen` at the lambdas `at`, the start's first; with the end's
    among them it is the corrector. rho: what the authors set, or None to solve for it."""
    h = math.log(s / r)
    hh = -h
    big = hh if bh == "bh1" else math.expm1(hh)
    ratios = [(lam - at[0]) / h for lam in at[1:]]
    phi, right, factorial = math.expm1(hh) / hh - 1, [], 1
    for i in range(len(ratios)):
        right.append(phi * factorial / big)
        factorial *= i + 2
        phi = phi / hh - 1 / factorial
    rhos = np.linalg.solve(np.vander(ratios, increasing=True).T, right).tolist() if rho is None else rho
    x = r / s * x - math.expm1(hh) * seen[0]
    for value, ratio, then in zip(rhos, ratios, seen[1:], strict=True):
        x = x - big * value * (then - seen[0]) / ratio
    return x


@pytest.mark.parametrize("bh", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_its_paper_s_linear_system(order, bh, run, start, d):
    """R rho = b / B(h) with the recursion for phi, rho = 1/2 for UniP-2 and UniC-1: the authors' form of the step."""
    sigmas, x, at, seen = SIGMAS.tolist(), start, [], [d(start, SIGMAS[0])]
    for i, (s, r) in enumerate(pairwise(sigmas[:-1])):
        at.insert(0, -math.log(s))
        p = min(order, i + 1, len(sigmas) - 1 - i)
        ahead = unipc_step(x, s, r, at[:p], seen[:p], bh, {1: (), 2: (0.5,)}.get(p))
        new = d(ahead, SIGMAS[i + 1])
        x = unipc_step(x, s, r, [*at[:p], -math.log(r)], [*seen[:p], new], bh, (0.5,) if p == 1 else None)
        seen.insert(0, new)
    same(run(unipc, order=order, variant=bh), seen[0])
