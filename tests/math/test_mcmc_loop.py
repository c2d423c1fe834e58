"""The loop of the Markov chain samplers: shapes, settings, keyed noise, and what is not finite."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from gentk.engine import rng
from gentk.errors import RecipeError, RunFailed
from gentk.solvers import chains, drawn, hmc, mala, ula
from gentk.solvers.chains import State
from gentk.targets import find

BANANA = find("banana")
KERNELS = pytest.mark.parametrize(
    "kernel", [ula.step, mala.step, partial(hmc.step, steps=3)], ids=["ula", "mala", "hmc"]
)


def normal(s):
    return lambda x: -0.5 * (x / s).square().reshape(len(x), -1).sum(1)


def keyed(seed, first):
    """Noise whose row i depends on (seed, number of the call, first + i) alone."""
    calls = iter(range(10**9))
    return lambda x: rng.noise(seed, first, len(x), x.shape[1:], purpose=f"chain {next(calls)}").to(x)


def half(x):
    """N(0, 1) on x > 0: log-density -inf outside, like a constraint."""
    return torch.where(x[:, 0] > 0, -0.5 * x[:, 0] ** 2, -math.inf)


def undefined(x):
    return torch.where(x[:, 0] > 0, -0.5 * x[:, 0] ** 2, math.nan)


def infinite(x):
    return torch.where(x[:, 0] > 0, -0.5 * x[:, 0] ** 2, math.inf)


def no_gradient(x):
    """Finite everywhere; the gradient is infinite outside."""
    return -0.5 * x[:, 0] ** 2 + torch.where(x[:, 0] > 0, 1, x[:, 0] - x[:, 0].detach()).sqrt()


@pytest.mark.parametrize("log_prob", [half, undefined, infinite, no_gradient])
@KERNELS
def test_unusable_proposals_are_rejected_and_counted(kernel, log_prob, gen):
    x = torch.randn(2000, 1, generator=gen, dtype=torch.float64).abs()
    state = chains.init(log_prob, x)
    moved, log_accept = kernel(state, log_prob, 0.5, drawn(gen))
    unusable = log_accept == -math.inf
    assert 50 < unusable.sum() < 1500
    assert torch.equal(moved.x[unusable], x[unusable])
    assert (moved.x > 0).all()
    assert not log_accept.isnan().any()
    gen.manual_seed(1)
    out = chains.run(kernel, log_prob, x, drawn(gen), draws=1, thin=3, step_size=0.5)
    gen.manual_seed(1)
    noise, count = drawn(gen), 0
    for _ in range(3):
        state, log_accept = kernel(state, log_prob, 0.5, noise)
        count += int((log_accept == -math.inf).sum())
    assert out.divergences == count > 0
    assert (out.x > 0).all()


def test_a_half_normal_is_sampled_through_its_edge(gen):
    """Rejection at the edge keeps the law: mean sqrt(2 / pi) and second moment 1 within 5 standard errors."""
    x = torch.randn(40_000, 1, generator=gen, dtype=torch.float64).abs()
    end = chains.run(mala.step, half, x, drawn(gen), draws=1, thin=20, step_size=0.5).x
    assert (end.mean() - (2 / math.pi) ** 0.5).abs() < 5 * end.std() / 200
    assert (end.square().mean() - 1).abs() < 5 * end.square().std() / 200


def test_a_start_without_density_is_an_error():
    for log_prob in (half, undefined, infinite):
        with pytest.raises(RunFailed, match="where 2 of 3 chains start"):
            chains.init(log_prob, torch.tensor([[1.0], [-1.0], [-2.0]]))


def test_every_part_must_be_finite():
    """Overflow can hide: a saturated log-density is finite at x = inf, and inf - inf makes a ratio NaN."""
    fine = State(torch.zeros(3, 2), torch.zeros(3), torch.zeros(3, 2))
    for part in range(3):
        bad = [p.clone() for p in fine]
        bad[part][1] = math.inf
        assert chains.finite(State(*bad)).tolist() == [True, False, True]
    there = State(torch.ones(3, 2), torch.zeros(3), torch.zeros(3, 2))
    sure = torch.full((3,), -9.0)
    moved, log_accept = chains.metropolis(fine, there, torch.tensor([0.5, math.nan, math.inf]), lambda x: sure)
    assert log_accept.tolist() == [0.5, -math.inf, math.inf]
    assert moved.x[:, 0].tolist() == [1, 0, 1]


def test_a_state_is_detached_and_leaves_x_alone():
    x = torch.ones(3, 2)
    for given in (x, x.clone().requires_grad_(), x.clone().requires_grad_() * 2):
        wanted = given.requires_grad
        assert not any(part.requires_grad for part in chains.at(normal(1.0), given))
        assert given.requires_grad == wanted


def test_energy_errors_beyond_1000_are_divergences(gen):
    """Leapfrog is unstable on N(0, 0.01^2) at step 0.05: finite, but no trajectory is taken."""
    x = 0.01 * torch.randn(50, 2, generator=gen, dtype=torch.float64)
    out = chains.run(partial(hmc.step, steps=5), normal(0.01), x, drawn(gen), draws=4, step_size=0.05)
    assert out.divergences == 200
    assert out.acceptance == 0
    assert torch.equal(out.x, x)


@KERNELS
def test_chain_k_does_not_depend_on_the_batch(kernel):
    """With keyed noise, chains 3 to 5 alone are those of a batch of 8, to rounding (vector code rounds by position)."""
    x = rng.noise(0, 0, 8, (2,)).double()
    settings = {"draws": 6, "thin": 2, "warmup": 3, "step_size": 0.3}
    whole = chains.run(kernel, BANANA.log_prob, x, keyed(7, 0), **settings).draws
    part = chains.run(kernel, BANANA.log_prob, x[3:6], keyed(7, 3), **settings).draws
    torch.testing.assert_close(part, whole[:, 3:6], rtol=1e-12, atol=1e-12)
    other = chains.run(kernel, BANANA.log_prob, x[3:6], keyed(7, 0), **settings).draws  # control: the keys matter
    assert (other - part).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (2,), (3, 4, 4)])
@KERNELS
def test_protocol(kernel, shape, dtype, gen):
    """Shapes and dtypes kept, every thin-th state drawn, x and global random state left alone, no graph kept."""
    x = torch.randn(5, *shape, generator=gen, dtype=dtype)
    kept, state, seen = x.clone(), torch.get_rng_state(), []
    x.requires_grad_()
    weight = torch.ones((), dtype=dtype, requires_grad=True)  # a network's parameter
    settings = {"warmup": 3, "thin": 2, "step_size": 0.1}

    def log_prob(x):
        return weight * normal(1.0)(x)

    out = chains.run(kernel, log_prob, x, drawn(gen.manual_seed(3)), draws=4, each=seen.append, **settings)
    assert out.x.shape == x.shape
    assert out.draws.shape == (4, *x.shape)
    assert out.x.dtype == out.draws.dtype == dtype
    assert torch.equal(out.draws[-1], out.x)
    assert not out.draws.requires_grad
    assert weight.grad is None
    assert 0.5 < out.acceptance <= 1
    assert out.step_size == 0.1
    assert out.divergences == 0
    assert seen == list(range(1, 12))
    assert torch.equal(x, kept)
    assert torch.equal(state, torch.get_rng_state())
    with torch.no_grad():
        fine = chains.run(kernel, log_prob, x, drawn(gen.manual_seed(3)), draws=8, **{**settings, "thin": 1})
    assert torch.equal(fine.draws[1::2], out.draws)
    last = chains.run(kernel, log_prob, x, drawn(gen.manual_seed(3)), draws=4, keep=False, **settings)
    assert last.draws is None
    assert torch.equal(last.x, out.x)


def test_gradients_are_counted(gen):
    """One a transition and one for the start, for HMC as many as leapfrog steps; one value of noise per purpose."""
    for kernel, gradients, noises in ((ula.step, 1, 1), (mala.step, 1, 2), (partial(hmc.step, steps=4), 4, 2)):
        calls, drew = [], []

        def log_prob(x, calls=calls):
            calls.append(len(x))
            return normal(1.0)(x)

        def noise(x, drew=drew):
            drew.append(tuple(x.shape))
            return torch.randn(x.shape, generator=gen)

        chains.run(kernel, log_prob, torch.zeros(6, 2), noise, draws=5, step_size=0.1)
        assert len(calls) == 1 + 5 * gradients
        assert drew == [(6, 2), (6,)][:noises] * 5


def test_faults_are_named(gen):
    go = partial(chains.run, mala.step, normal(1.0), torch.zeros(3, 2), drawn(gen))
    for wrong in ({"draws": 0}, {"thin": 0}, {"warmup": -1}, {"step_size": 0.0}, {"step_size": math.nan}):
        with pytest.raises(RecipeError, match=next(iter(wrong))):
            go(**{"draws": 2, "step_size": 0.1, **wrong})
    with pytest.raises(RecipeError, match="target_accept"):
        go(draws=2, step_size=0.1, target_accept=1.0)
    with pytest.raises(RecipeError, match="hmc: steps 0"):
        hmc.step(chains.init(normal(1.0), torch.zeros(3, 2)), normal(1.0), 0.1, drawn(gen), steps=0)
    with pytest.raises(ValueError, match=r"expected \(3,\)"):  # (3, 1) would broadcast to (3, 3)
        chains.init(lambda x: x.square().sum(1, keepdim=True), torch.zeros(3, 2))
