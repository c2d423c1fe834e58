"""Losses against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gentk.errors import RecipeError
from gentk.losses import distances, matching
from gentk.losses.divergence import diff_instruct, fgm, sid, sim, weight
from gentk.processes.denoiser import Denoiser
from gentk.processes.process import ratio

NAMES = ("pseudo-huber", "l2", "l2-norm", "smooth-l1")


def draw(gen, *shape):
    return torch.randn(*shape, generator=gen, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("c", [0.03, 2.0])
def test_value_is_its_formula(name, c, gen):
    y = draw(gen, 5, 3, 2, 2)
    square = y.square().sum((1, 2, 3))
    want = {
        "pseudo-huber": (square + c**2).sqrt() - c,
        "l2": square,
        "l2-norm": square.sqrt(),
        "smooth-l1": ((y.square() + c**2).sqrt() - c).sum((1, 2, 3)),
    }[name]
    torch.testing.assert_close(distances.value(y, name, c), want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(6, 2), (4, 3, 2, 2)])
def test_slope_is_the_gradient_of_value(name, shape, gen):
    for c in (0.03, 2.0):
        y = draw(gen, *shape).requires_grad_()
        want = torch.autograd.grad(distances.value(y, name, c).sum(), y)[0]
        torch.testing.assert_close(distances.slope(y, name, c), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_slope_carries_its_own_derivative(name, gen):
    """gradcheck of the slope, which the divergences differentiate: fails where a normaliser is detached."""
    y = draw(gen, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: distances.slope(y, name, 0.3), (y,))
    assert torch.autograd.gradcheck(lambda y: distances.value(y, name, 0.3), (y,))


@pytest.mark.parametrize("name", NAMES)
def test_zero_difference_is_harmless(name):
    """Fake score equal to the teacher, as at the first step: value 0, slope 0, no nan in any derivative."""
    y = torch.zeros(2, 3, requires_grad=True)
    for f in (distances.value, distances.slope):
        out = f(y, name, 0.05)
        assert (out == 0).all()
        assert torch.autograd.grad(out.sum(), y)[0].isfinite().all()


def test_pseudo_huber_keeps_small_differences():
    """sqrt(y^2 + c^2) - c in float32 would be 0 for y = 1e-5, c = 1; the value is y^2 / 2c."""
    y = torch.full((1, 1), 1e-5)
    for name in ("pseudo-huber", "smooth-l1"):
        assert distances.value(y, name, 1.0).item() == pytest.approx(5e-11, rel=1e-5)


def test_pseudo_huber_without_c_is_the_norm(gen):
    y = draw(gen, 4, 3)
    assert torch.equal(distances.value(y, "pseudo-huber", 0.0), distances.value(y, "l2-norm", 0.0))
    assert torch.equal(distances.slope(y, "pseudo-huber", 0.0), distances.slope(y, "l2-norm", 0.0))


def test_distances_that_have_no_right_gradient_are_refused(gen):
    y = draw(gen, 2, 2)
    for f in (distances.value, distances.slope):
        with pytest.raises(RecipeError, match="smooth-l1"):
            f(y, "smooth-l1", 0.0)
        with pytest.raises(RecipeError, match="negative"):
            f(y, "pseudo-huber", -1.0)
        with pytest.raises(RecipeError, match="unknown distance"):
            f(y, "l3", 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_sim_is_its_formula(name, gen):
    x0, dq, dp = draw(gen, 3, 4, 2, 1, 2)
    delta, half = dq - dp, 0.5 if name == "l2" else 1.0
    frozen = half * (distances.slope(delta, name, 0.3) * (dp - x0)).sum((1, 2, 3))
    torch.testing.assert_close(sim(x0, dq, dp, distance=name, c=0.3, path="frozen"), frozen)
    full = frozen + half * distances.value(delta, name, 0.3)
    torch.testing.assert_close(sim(x0, dq, dp, distance=name, c=0.3, path="full"), full)


def test_sim_l2_is_sid(gen):
    """SiD(alpha) = delta . ((D_q - x0) - alpha delta): frozen is alpha = 1, full is alpha = 1/2."""
    x0, dq, dp = draw(gen, 3, 4, 6)
    for path, alpha in (("frozen", 1.0), ("full", 0.5)):
        want = ((dq - dp) * ((dq - x0) - alpha * (dq - dp))).sum(1)
        torch.testing.assert_close(sim(x0, dq, dp, distance="l2", c=0.0, path=path), want)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_sid_is_its_formula(alpha, gen):
    x0, dq, dp = draw(gen, 3, 4, 2, 1, 2)
    delta = dq - dp
    want = (delta * ((dq - x0) - alpha * delta)).sum((1, 2, 3))
    torch.testing.assert_close(sid(x0, dq, dp, alpha=alpha), want, rtol=1e-12, atol=1e-12)
    frozen = sim(x0, dq, dp, distance="l2", c=0.0, path="frozen")
    torch.testing.assert_close(want, frozen + (1 - alpha) * delta.square().sum((1, 2, 3)), rtol=1e-12, atol=1e-12)


def test_fgm_is_its_formula_in_velocities(gen):
    """L2 = 2 (u - v) . (v - (x1 - x0)), L1 = |u - v|^2 with u = (x_t - D_q) / t: weight `velocity` is their 1 / t^2."""
    x0, x1, u, v = draw(gen, 4, 5, 2, 1, 2)
    t = torch.tensor([2e-3, 0.1, 0.5, 0.9, 0.999]).double()
    time = t[:, None, None, None]
    x = (1 - time) * x0 + time * x1
    dq, dp = x - time * u, x - time * v
    second = (2 * (u - v) * (v - (x1 - x0))).sum((1, 2, 3))
    w = weight("velocity", t / (1 - t), x0, dq)
    torch.testing.assert_close(w * fgm(x0, dq, dp, path="frozen"), second, rtol=1e-9, atol=1e-9)
    both = second + (u - v).square().sum((1, 2, 3))
    torch.testing.assert_close(w * fgm(x0, dq, dp, path="full"), both, rtol=1e-9, atol=1e-9)


def test_the_velocity_weight_is_held(gen):
    """1 / t^2 stops at t = 1e-3, and is 1 at pure noise, where sigma / alpha is infinite."""
    s, x = torch.tensor([0.0, 1e-5, 1e-3 / 0.999, 1.0, torch.inf], dtype=torch.float64), draw(gen, 5, 2)
    want = torch.tensor([1e6, 1e6, 1e6, 4.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(weight("velocity", s, x, x), want, rtol=1e-12, atol=0)


def test_sim_refuses_a_severed_graph(gen):
    """Traps T1 to T3: under no_grad the loss has the right value and the wrong gradient."""
    x0 = draw(gen, 3, 2).requires_grad_()
    live, dead = x0 * 0.5, (x0 * 0.5).detach()
    for dq, dp in ((dead, live), (live, dead), (dead, dead)):
        with pytest.raises(ValueError, match="differentiable in x_t"):
            sim(x0, dq, dp, distance="l2", c=0.0, path="frozen")
        with pytest.raises(ValueError, match="differentiable in x_t"):
            sid(x0, dq, dp, alpha=1.0)
        with pytest.raises(ValueError, match="differentiable in x_t"):
            fgm(x0, dq, dp, path="frozen")
    with torch.no_grad():  # only the value is wanted: fine
        sim(x0, dead, dead, distance="l2", c=0.0, path="frozen")


def test_diff_instruct_moves_x0_by_the_field_alone(gen):
    x0 = draw(gen, 3, 2).requires_grad_()
    dq, dp = x0.square(), x0.sin()
    loss = diff_instruct(x0, dq, dp)
    assert loss.shape == (3,)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), x0)[0], (dp - dq).detach())


def test_weights_are_their_formulas_and_carry_no_graph(gen):
    x0, dq = draw(gen, 2, 4, 3, 2, 2)
    x0, dq, s = x0.requires_grad_(), dq.requires_grad_(), torch.tensor([0.002, 0.5, 1.0, 80.0]).double()
    want = {
        "const": torch.ones(4).double(),
        "s2": s**-2,
        "s4": s**-4,
        "edm": (s**2 + 0.7**2) / (s * 0.7) ** 2,
        "velocity": ((1 + s) / s).clamp(max=1e3) ** 2,
        "sid-l1": 1 / (x0 - dq).abs().mean((1, 2, 3)).detach(),
    }
    for name, w in want.items():
        got = weight(name, s, x0, dq, sigma_data=0.7)
        assert got.shape == (4,)
        assert not got.requires_grad
        torch.testing.assert_close(got, w, rtol=1e-12, atol=0)
        assert weight(name, s[1], x0.float(), dq.float()).dtype == torch.float32
    assert weight("sid-l1", s, x0, x0).tolist() == pytest.approx([1e5] * 4)
    with pytest.raises(RecipeError, match="unknown weight"):
        weight("sid", s, x0, dq)


class Net(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))

    def forward(self, x, c_noise, cond=None):
        return self.gain * x.tanh() + (0 if cond is None else cond[:, None])


def test_edm_loss_is_its_definition(process, gen):
    """lambda(sigma) |D(x0 + sigma n; sigma) - x0|^2 in EDM's own coordinates, mean over dimensions."""
    sd, label = 0.7, torch.tensor([0, 1, 2, 3])
    x0, eps = draw(gen, 2, 4, 3)
    t = process.t_of(torch.tensor([0.01, 0.3, 2.0, 40.0]).double())
    s = ratio(process, t)[:, None]
    x_hat = x0 + s * eps
    c_skip, c_out, c_in = sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2).sqrt(), 1 / (s**2 + sd**2).sqrt()
    denoised = c_skip * x_hat + c_out * Net(0.4)(c_in * x_hat, s.log() / 4, label)
    want = ((s**2 + sd**2) / (s * sd) ** 2 * (denoised - x0) ** 2).mean(1)
    got = matching.edm(Denoiser(Net(0.4), process, "edm", sd), process, x0, t, eps, label, sd)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_edm_loss_of_an_untrained_network_is_one(process, gen):
    """F = 0 and data of variance sd^2: loss 1 at every level. Standard error sqrt(2 / n) = 0.01; bound 5 of them."""
    n, sd = 20_000, 0.7
    x0, eps = draw(gen, 2, n, 1)
    for s in (0.01, 0.7, 50.0):
        t = process.t_of(torch.tensor(s).double())
        loss = matching.edm(Denoiser(Net(0.0), process, "edm", sd), process, sd * x0, t, eps, None, sd)
        assert loss.shape == (n,)
        assert abs(loss.mean().item() - 1) < 5 * (2 / n) ** 0.5


def test_edm_loss_is_least_at_the_conditional_mean(process, mixture, gen):
    """Its gradient along any direction of D vanishes at D = E[x0 | x_t]: z of the mean over 40 000 samples below 4."""
    n = 40_000
    x0, eps = mixture.sample(n, gen), draw(gen, n, 2)
    t = process.t_of(torch.tensor(0.8).double())

    class Tilted(Denoiser):
        """tilt * E[x0 | x_t], pushed along a fixed field cos(x): the push is one number per sample and coordinate."""

        def __init__(self, tilt):
            super().__init__(nn.Identity(), process, "x0", 0.7)
            self.tilt, self.push = tilt, torch.zeros(n, 2, dtype=torch.float64, requires_grad=True)

        def forward(self, x, t, cond=None):
            return self.tilt * mixture.denoise(process, x, t) + self.push * x.cos()

    def z(tilt):
        net = Tilted(tilt)
        each = torch.autograd.grad(matching.edm(net, process, x0, t, eps, None, 0.7).sum(), net.push)[0]
        return (each.mean(0) / each.std(0) * n**0.5).abs().max()

    assert z(1.0) < 4
    assert z(0.8) > 10  # negative control: a denoiser that is 20 % short
