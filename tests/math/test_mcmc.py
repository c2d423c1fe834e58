"""Markov chain samplers against exact identities: detailed balance, invariance, leapfrog's symmetries, known biases."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import norm

from gentk.solvers import chains, drawn, hmc, mala, ula
from gentk.solvers.chains import Adaptation, State
from gentk.targets import find

GAUSS, BANANA, FUNNEL, RING = (find(name) for name in ("gaussian", "banana", "funnel", "ring8"))


def normal(s):
    return lambda x: -0.5 * (x / s).square().reshape(len(x), -1).sum(1)


def exact(target, n, gen):
    return target.sample(n, gen).double()


def scripted(*parts):
    """Noise that returns these tensors, one a call."""
    left = iter(parts)
    return lambda x: next(left)


# ---------------------------------------------------------------------------------------------- detailed balance


def imbalance(step, target, e, gen, n=200):
    """max |ln pi(x) q(y|x) a(x, y) - ln pi(y) q(x|y) a(y, x)| over random pairs, a from the code's own log_accept."""
    x, y = exact(target, n, gen), exact(target, n, gen) + 0.3 * torch.randn(n, 2, generator=gen).double()
    sides = []
    for a, b in ((x, y), (y, x)):
        mean = a + e / 2 * target.score(a)
        taken = torch.full((n,), -40.0).double()  # ln Phi(-40) = -805: accepted unless log_accept is below that
        moved, log_accept = step(
            chains.init(target.log_prob, a), target.log_prob, e, scripted((b - mean) / e**0.5, taken)
        )
        sure = log_accept > -800
        torch.testing.assert_close(moved.x[sure], b[sure], rtol=0, atol=1e-13)
        log_q = torch.distributions.Normal(mean, e**0.5).log_prob(b).sum(1)
        sides.append(target.log_prob(a) + log_q + log_accept.clamp(max=0))
    scale = 1 + sides[0].abs()
    return ((sides[0] - sides[1]).abs() / scale).max().item()


def broken_mala(state, log_prob, step_size, noise, *, sign=1.0, ratio=0.0):
    xi = noise(state.x)
    new = chains.at(log_prob, ula.propose(state, step_size, xi))
    s = math.sqrt(step_size) / 2 * (state.grad + new.grad)
    log_ratio = new.log_prob - state.log_prob - ratio * chains.inner(s, xi + s / 2)
    return chains.metropolis(state, new, sign * log_ratio, noise)


no_ratio, wrong_sign = broken_mala, partial(broken_mala, sign=-1.0, ratio=1.0)


@pytest.mark.parametrize("target", [GAUSS, BANANA, FUNNEL], ids=lambda t: t.name)
@pytest.mark.parametrize("e", [0.5, 2.0])
def test_mala_is_in_detailed_balance(target, e, gen):
    """To 1e-12 of 1 + the logarithm's size, which holds the rounding of its terms."""
    assert imbalance(mala.step, target, e, gen) < 1e-12
    assert imbalance(partial(broken_mala, ratio=1.0), target, e, gen) < 1e-12  # the controls break it, not their form
    assert imbalance(no_ratio, target, e, gen) > 0.1
    assert imbalance(wrong_sign, target, e, gen) > 0.1


@pytest.mark.parametrize("target", [GAUSS, BANANA, FUNNEL], ids=lambda t: t.name)
def test_hmc_is_in_detailed_balance(target, gen):
    """A trajectory and its reverse, from (y, -p'), have opposite log_accept, and each ends where the other starts."""
    x, p = exact(target, 200, gen), torch.randn(200, 2, generator=gen, dtype=torch.float64)
    start, always = chains.init(target.log_prob, x), torch.full((200,), -40.0).double()
    there, forward = hmc.step(start, target.log_prob, 0.15, scripted(p, always), steps=7)
    _, end = hmc.leapfrog(start, p, partial(chains.at, target.log_prob), 0.15, 7)
    back, backward = hmc.step(there, target.log_prob, 0.15, scripted(-end, always), steps=7)
    assert forward.abs().max() > 1e-3
    torch.testing.assert_close(backward, -forward, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back.x, x, rtol=0, atol=1e-12)


def test_mala_is_hmc_with_one_step(gen):
    """Two derivations of one kernel: step sizes e and sqrt(e), the same noise."""
    state = chains.init(BANANA.log_prob, exact(BANANA, 500, gen))
    parts = torch.randn(500, 2, generator=gen).double(), torch.randn(500, generator=gen).double()
    (a, log_a), (b, log_b) = (
        kernel(state, BANANA.log_prob, size, scripted(*parts))
        for kernel, size in ((mala.step, 0.49), (partial(hmc.step, steps=1), 0.7))
    )
    torch.testing.assert_close(log_a, log_b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.x, b.x, rtol=1e-12, atol=1e-12)
    assert 50 < (a.x != state.x).any(1).sum() < 450  # some went, some stayed


def test_a_proposal_is_taken_with_its_probability(gen):
    """One proposal, 2000 values of z: taken exactly where u = Phi(z) < e^log_accept."""
    n = 2000
    x = torch.tensor([[0.4, -0.2]]).double().expand(n, 2)
    xi, z = torch.tensor([[-1.0, 1.0]]).double().expand(n, 2), torch.linspace(-5, 5, n).double()
    state = chains.init(BANANA.log_prob, x)
    moved, log_accept = mala.step(state, BANANA.log_prob, 0.3, scripted(xi, z))
    went = (moved.x != x).any(1)
    assert went.tolist() == (norm.cdf(z.numpy()) < log_accept.exp().numpy()).tolist()
    assert 0.1 < went.double().mean() < 0.9
    for kept, was, at in zip(moved, state, chains.at(BANANA.log_prob, moved.x), strict=True):
        torch.testing.assert_close(kept[~went], was[~went], rtol=0, atol=0)
        torch.testing.assert_close(kept, at)  # the cached value and gradient belong to x


# ---------------------------------------------------------------------------------------------- invariance


def drift(kernel, target, step_size, gen, noise=None, n=20_000, steps=8):
    """From exact samples no mean of f(x_k) - f(x_0) may move: the largest, in standard errors, of seven f."""
    x = exact(target, n, gen)
    end = chains.run(kernel, target.log_prob, x, noise or drawn(gen), draws=1, thin=steps, step_size=step_size).x

    def functions(x):
        a, b = x.unbind(1)
        return torch.stack((a, b, a * a, a * b, b * b, target.log_prob(x), (2 * a).sin()), 1)

    change = functions(end) - functions(x)
    assert (change != 0).double().mean() > 0.3
    return (change.mean(0) / (change.std(0) / n**0.5)).abs().max().item()


KERNELS = {"mala": (mala.step, 0.5), "hmc": (partial(hmc.step, steps=5), 0.4)}


@pytest.mark.parametrize("target", [GAUSS, BANANA, FUNNEL, RING], ids=lambda t: t.name)
@pytest.mark.parametrize("name", KERNELS)
def test_exact_samples_stay_exact(name, target, gen):
    kernel, step_size = KERNELS[name]
    if target is RING:  # modes of deviation 0.1 instead of 1: lengths scale by it
        step_size *= 0.1 ** (2 if name == "mala" else 1)
    assert drift(kernel, target, step_size, gen) < 5


def test_broken_kernels_do_not_keep_them(gen):
    """Negative controls: without the proposal's ratio, with its sign turned, uncorrected, and with noise used twice."""
    last = []

    def reused(x):
        """The acceptance made of the proposal's own noise."""
        if x.dim() == 1:
            return last.pop()[:, 0]
        last.append(torch.randn(x.shape, generator=gen, dtype=x.dtype))
        return last[-1]

    assert drift(no_ratio, GAUSS, 0.5, gen) > 20
    assert drift(wrong_sign, GAUSS, 0.5, gen) > 20
    assert drift(ula.step, GAUSS, 0.5, gen) > 20
    assert drift(mala.step, GAUSS, 0.5, gen, noise=reused) > 20


def test_ula_is_the_autoregression_with_its_bias_and_mala_is_not(gen):
    """N(0, s^2): x' = (1 - e / 2 s^2) x + sqrt(e) xi, stationary variance s^2 / (1 - e / 4 s^2), here 4/3 s^2.

    The variance of n = 100 000 independent chains has the relative standard error sqrt(2 / n) = 0.45 %; 40 steps of
    factor 1/2 forget the start.
    """
    s, n = 0.7, 100_000
    e, band = s**2, 5 * (2 / n) ** 0.5
    x = s * torch.randn(n, 1, generator=gen, dtype=torch.float64)
    xi = torch.randn(n, 1, generator=gen, dtype=torch.float64)
    moved, log_accept = ula.step(chains.init(normal(s), x), normal(s), e, scripted(xi))
    torch.testing.assert_close(moved.x, (1 - e / (2 * s**2)) * x + e**0.5 * xi, rtol=1e-14, atol=1e-14)
    assert (log_accept == 0).all()
    variance = {
        kernel: chains.run(kernel, normal(s), x, drawn(gen), draws=1, thin=40, step_size=e).x.var().item() / s**2
        for kernel in (ula.step, mala.step)
    }
    assert variance[ula.step] == pytest.approx(4 / 3, rel=band)
    assert variance[mala.step] == pytest.approx(1, rel=band)


# ---------------------------------------------------------------------------------------------- leapfrog


def full_first_kick(state, momentum, evaluate, step_size, steps):
    momentum = momentum + step_size / 2 * state.grad
    return hmc.leapfrog(state, momentum, evaluate, step_size, steps)


def round_trip(leapfrog, gen):
    x, p = exact(BANANA, 100, gen), torch.randn(100, 2, generator=gen, dtype=torch.float64)
    go = partial(leapfrog, evaluate=partial(chains.at, BANANA.log_prob), step_size=0.1, steps=10)
    there, q = go(chains.at(BANANA.log_prob, x), p)
    assert (there.x - x).abs().mean() > 0.3
    back, r = go(there, -q)
    return max((back.x - x).abs().max().item(), (r + p).abs().max().item())


def test_leapfrog_is_reversible(gen):
    assert round_trip(hmc.leapfrog, gen) < 1e-12
    assert round_trip(full_first_kick, gen) > 0.1


def quartic(x, damping=0.0):
    """The state of log p = -(x1^4 / 4 + x1^2 x2^2 / 2 + x2^2), differentiable throughout."""
    a, b = x.unbind(-1)
    return State(x, -(a**4 / 4 + a**2 * b**2 / 2 + b**2), -torch.stack((a**3 + a * b**2, a**2 * b + 2 * b), -1))


def volume(gen, damping=1.0):
    def flow(z):
        x, p = z.split(2)
        end, q = hmc.leapfrog(quartic(x[None]), damping * p[None], quartic, 0.2, 6)
        return torch.cat((end.x[0], q[0]))

    points = torch.randn(10, 4, generator=gen, dtype=torch.float64)
    return torch.stack([torch.autograd.functional.jacobian(flow, z).det() for z in points])


def test_leapfrog_preserves_volume(gen):
    assert (volume(gen) - 1).abs().max() < 1e-10
    assert (volume(gen, damping=0.9) - 0.81).abs().max() < 1e-10  # the check sees a factor on the momentum


def energy_slope(leapfrog, gen):
    """Of the rms of dH over trajectories of length 1.2 in their number of steps."""
    x, p = exact(GAUSS, 400, gen), torch.randn(400, 2, generator=gen, dtype=torch.float64)
    evaluate, errors, steps = partial(chains.at, GAUSS.log_prob), [], (16, 32, 64)
    for count in steps:
        end, q = leapfrog(evaluate(x), p, evaluate, 1.2 / count, count)
        change = end.log_prob - GAUSS.log_prob(x) + chains.inner(p - q, p + q) / 2
        errors.append(change.square().mean().sqrt().item())
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def test_energy_error_is_of_second_order(gen):
    assert energy_slope(hmc.leapfrog, gen) == pytest.approx(2, abs=0.1)
    assert energy_slope(full_first_kick, gen) < 1.3


@pytest.mark.parametrize(("target", "h", "steps"), [(GAUSS, 0.3, 4), (BANANA, 0.1, 12)], ids=["gaussian", "banana"])
def test_mean_of_the_ratio_is_one(target, h, steps, gen):
    """E[e^-dH] = 1 from exact samples, because the flow keeps volume; within 5 standard errors (below 0.2 %)."""
    n = 50_000
    state = chains.init(target.log_prob, exact(target, n, gen))
    _, log_accept = hmc.step(state, target.log_prob, h, drawn(gen), steps=steps)
    far = []
    for ratio in (log_accept.exp(), (-log_accept).exp()):  # the second: dH with the wrong sign
        error = ratio.std() / n**0.5
        assert error > 1e-4
        far.append((ratio.mean() - 1).abs() / error)
    assert log_accept.exp().std() / n**0.5 < 0.002
    assert far[0] < 5
    assert far[1] > 5


# ---------------------------------------------------------------------------------------------- adaptation


def test_dual_averaging_is_the_papers_recursion():
    """Unrolled: log e_{m+1} = mu - sqrt(m) / 0.05 / (m + 10) sum_i (target - a_i); e-bar by its definition."""
    accepts, target, first = [0.9, 0.2, 0.0, 1.0, 0.7], 0.8, 0.3
    state, mean = Adaptation.init(first), 0.0
    assert state.step_size == pytest.approx(first)
    assert state.final == pytest.approx(first)
    for m, a in enumerate(accepts, 1):
        state = state.update(a, target)
        log = math.log(10 * first) - m**0.5 / 0.05 / (m + 10) * sum(target - a for a in accepts[:m])
        mean = m**-0.75 * log + (1 - m**-0.75) * mean
        assert math.log(state.step_size) == pytest.approx(log, rel=1e-13)
        assert math.log(state.final) == pytest.approx(mean, rel=1e-13)


@pytest.mark.parametrize("first", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("m", [500, 8000])
def test_dual_averaging_solves_its_equation(first, m):
    """Acceptance e^(-step): the step for 0.8 is e* = -ln 0.8.

    There H-bar_m = 0.05 (mu - ln e*) / sqrt(m), so the acceptance still misses the target by (m H-bar_m)' =
    0.025 (mu - ln e*) / sqrt(m): 0.01 after 500 updates from 100, within 5 %. The average lags behind by a fifth.
    """
    state = Adaptation.init(first)
    for _ in range(m):
        state = state.update(math.exp(-state.step_size), 0.8)
    miss = 0.025 * (math.log(10 * first) - math.log(-math.log(0.8))) / m**0.5
    assert 0.8 - math.exp(-state.step_size) == pytest.approx(miss, rel=0.05)
    assert 0.8 - math.exp(-state.final) == pytest.approx(miss, rel=0.2)


@pytest.mark.parametrize("first", [1e-3, 10.0])
@pytest.mark.parametrize("target", [GAUSS, BANANA], ids=lambda t: t.name)
@pytest.mark.parametrize("name", KERNELS)
def test_warm_up_reaches_the_target_acceptance(name, target, first, gen):
    """Within 0.04 over the 200 transitions of 400 chains that follow 300 of warm-up, from any first step size.

    What is left: 0.01 by the pull towards mu (above), the overshoot from a far start, banana's slow tails.
    """
    wanted = {"mala": mala, "hmc": hmc}[name].TARGET_ACCEPT
    kernel, _ = KERNELS[name]
    settings = {"draws": 200, "step_size": first, "keep": False}
    start = exact(target, 400, gen)
    out = chains.run(kernel, target.log_prob, start, drawn(gen), warmup=300, target_accept=wanted, **settings)
    assert out.acceptance == pytest.approx(wanted, abs=0.04)
    fixed = chains.run(kernel, target.log_prob, start, drawn(gen), warmup=5, **settings)
    assert fixed.step_size == first
    assert abs(fixed.acceptance - wanted) > 0.15
