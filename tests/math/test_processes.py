"""Processes: schedules against autograd, conversions against their definitions, the flow against the density."""

from __future__ import annotations

import pytest
import torch

from gentk.errors import RecipeError
from gentk.processes.process import diffuse, expand, from_x0, ratio, x0_from
from gentk.processes.schedules import VE, VP, Cosine, RectifiedFlow, build
from gentk.recipe import schema

KINDS = ("x0", "eps", "v", "flow", "score", "velocity")
EPS = torch.finfo(torch.float64).eps


def times(process, n=41):
    """From t_min to 0.999 of t_max, where alpha > 0 for every process; half of them packed towards t_min."""
    u = torch.linspace(0, 0.999, n, dtype=torch.float64)
    return torch.cat([u, u**4]).clamp_min(process.t_min / process.t_max) * process.t_max


def pair(n, gen):
    x0, eps = torch.randn(2, n, 3, generator=gen, dtype=torch.float64)
    return x0, eps


def test_derivatives_are_those_of_autograd(process):
    t = times(process).requires_grad_()
    for f, df in ((process.alpha, process.d_alpha), (process.sigma, process.d_sigma)):
        y = f(t)
        slope = torch.autograd.grad(y.sum(), t)[0] if y.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(df(t), slope.detach() + 0 * t, rtol=1e-11, atol=1e-13, check_stride=False)


def test_alpha_and_sigma_at_the_clean_end(process):
    zero = torch.zeros((), dtype=torch.float64)
    assert process.alpha(zero) == 1
    assert process.sigma(zero) == 0
    assert process.t_of(zero) == 0


def test_t_of_inverts_the_ratio(process):
    t = times(process)
    torch.testing.assert_close(process.t_of(ratio(process, t)), t, rtol=1e-11, atol=0)
    s = torch.logspace(-4, 2, 30, dtype=torch.float64)
    torch.testing.assert_close(ratio(process, process.t_of(s)), s, rtol=1e-11, atol=0)


def test_ratio_grows_with_time(process):
    assert (ratio(process, times(process, 41)[:41]).diff() > 0).all()


def test_infinite_ratio_is_the_noisy_end():
    inf = torch.tensor(torch.inf, dtype=torch.float64)
    assert RectifiedFlow().t_of(inf) == 1
    assert Cosine().t_of(inf) == 1
    assert ratio(RectifiedFlow(), torch.ones((), dtype=torch.float64)) == inf


def test_vp_reaches_the_known_noise_levels():
    """score_sde's schedule spans sigma 0.0010 to 152.2 in EDM's coordinates (EDM, table 1 and its appendix)."""
    ends = ratio(VP(), torch.tensor([1e-5, 1.0], dtype=torch.float64))
    assert ends[0].item() == pytest.approx(0.0010, abs=5e-5)
    assert ends[1].item() == pytest.approx(152.2, abs=0.05)


def test_dtype_of_t_is_kept(process):
    for dtype in (torch.float32, torch.float64):
        t = torch.tensor([0.3, 0.7], dtype=dtype)
        for f in (process.alpha, process.sigma, process.d_alpha, process.d_sigma, process.t_of):
            assert f(t).dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_conversions_invert_each_other(process, kind, gen):
    """Error bound: each way divides a rounding error of size eps (1 + s) by alpha or by sigma."""
    t = times(process)
    x0, eps = pair(len(t), gen)
    x = diffuse(process, x0, t, eps)
    out = from_x0(kind, process, x, t, x0)
    s = ratio(process, t)
    bound = (200 * EPS * (1 + s + 1 / s))[:, None]
    assert ((x0_from(kind, process, x, t, out) - x0).abs() < bound).all()
    again = from_x0(kind, process, x, t, x0_from(kind, process, x, t, out))
    assert ((again - out).abs() < bound * (1 + out.abs().amax(1, keepdim=True))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_conversions_match_their_definitions(process, kind, gen):
    t = times(process)[5:40]
    x0, eps = pair(len(t), gen)
    x = diffuse(process, x0, t, eps)
    a, b = expand(process.alpha(t), x), expand(process.sigma(t), x)
    live = t.clone().requires_grad_()
    path = diffuse(process, x0, live, eps)
    dx = torch.stack([torch.autograd.grad(path[:, i].sum(), live, retain_graph=True)[0] for i in range(3)], 1)
    want = {"x0": x0, "eps": eps, "v": a * eps - b * x0, "flow": eps - x0, "score": -eps / b, "velocity": dx}[kind]
    got = from_x0(kind, process, x, t, x0)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x0_from(kind, process, x, t, want), x0, rtol=1e-9, atol=1e-9)
    if kind != "x0":  # negative control: a sign flip is far outside
        assert (got + want).abs().max() > 0.1


def test_score_of_the_denoiser_is_the_gradient_of_the_density(process, mixture, gen):
    """Tweedie: (alpha D - x) / sigma^2 = grad ln p_t."""
    t = process.t_of(torch.logspace(-1, 1, 50, dtype=torch.float64))
    x = diffuse(process, mixture.sample(50, gen), t, torch.randn(50, 2, generator=gen, dtype=torch.float64))
    x.requires_grad_()
    want = torch.autograd.grad(mixture.log_prob(process, x, t).sum(), x)[0]
    got = from_x0("score", process, x, t, mixture.denoise(process, x, t))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_velocity_transports_the_density(process, mixture, gen):
    """Continuity: d ln p_t / dt + div v + v . grad ln p_t = 0 for the probability-flow velocity, and not for -v."""
    t = process.t_of(torch.logspace(-1, 1, 50, dtype=torch.float64)).requires_grad_()
    x = torch.randn(50, 2, generator=gen, dtype=torch.float64).requires_grad_()
    v = from_x0("velocity", process, x, t, mixture.denoise(process, x, t))
    divergence = sum(torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    score, rate = torch.autograd.grad(mixture.log_prob(process, x, t).sum(), (x, t))
    flux = divergence + (v * score).sum(1)
    scale = rate.abs() + flux.abs() + 1
    assert ((rate + flux).abs() / scale).max() < 1e-10
    assert ((rate - flux).abs() / scale).max() > 0.1


def test_expand_shapes_and_dtype():
    x = torch.zeros(4, 3, 2, 2, dtype=torch.float32)
    t = torch.rand(4, dtype=torch.float64)
    assert expand(t, x).shape == (4, 1, 1, 1)
    assert expand(t, x).dtype == torch.float32
    assert (expand(t[0], x) * x).shape == x.shape


def test_float32_samples_have_float64_coefficients(gen):
    """alpha eps - sigma x0 at t = 1e-5 of `vp`, inverted in float32: the error is float32's own, not magnified."""
    t = torch.full((64,), 1e-5, dtype=torch.float64)
    x0, eps = pair(64, gen)
    for kind in ("v", "flow", "velocity", "eps"):
        x = diffuse(VP(), x0, t, eps)
        out = from_x0(kind, VP(), x, t, x0)
        got = x0_from(kind, VP(), x.float(), t, out.float())
        assert got.dtype == torch.float32
        assert (got - x0).abs().max() < 10 * torch.finfo(torch.float32).eps


def test_unknown_kind_is_refused():
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="unknown kind"):
        x0_from("noise", VE(), one, one, one)  # type: ignore[arg-type]


def test_build_reads_every_section():
    assert build(schema.VE(name="ve", sigma_min=0.01, sigma_max=50.0)) == VE(0.01, 50.0)
    assert build(schema.VP(name="vp", beta_min=0.2, beta_max=10.0, t_min=1e-3)) == VP(0.2, 10.0, 1e-3, 1.0)
    assert build(schema.Cosine(name="cosine", t_min=1e-3, t_max=0.99)) == Cosine(1e-3, 0.99)
    assert build(schema.RectifiedFlow(name="rectified-flow")) == RectifiedFlow(1e-4, 1.0)


def test_build_refuses_an_empty_range():
    with pytest.raises(RecipeError, match="not below") as fault:
        build(schema.Cosine(name="cosine", t_min=0.9, t_max=0.5))
    assert fault.value.code == 2
    assert fault.value.hint
