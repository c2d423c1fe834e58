"""Processes: schedules against autograd, conversions against their definitions, the flow against the density."""

from __future__ import annotations

import mpmath
import pytest
import torch

from gentk.errors import RecipeError
from gentk.processes.process import diffuse, expand, from_x0, ratio, x0_from
from gentk.processes.schedules import VE, VP, Cosine, Discrete, RectifiedFlow, build
from gentk.recipe import schema

KINDS = ("x0", "eps", "v", "flow", "reverse-eps", "reverse-flow", "score", "velocity")
EPS = torch.finfo(torch.float64).eps


HALF = Discrete(data_scale=0.5)


@pytest.fixture(
    params=[VE(), VP(), Cosine(), RectifiedFlow(), Discrete(), HALF, Discrete(data_scale=3.0)],
    ids=lambda p: p.name + (f" {p.data_scale}" if isinstance(p, Discrete) else ""),
)
def process(request):
    """All of them: `discrete` too, whose derivatives jump, which the tests of solvers and their orders do without."""
    return request.param


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
    want = {"x0": x0, "eps": eps, "v": a * eps - b * x0, "flow": eps - x0, "score": -eps / b, "velocity": dx}
    want = {**want, "reverse-eps": -eps, "reverse-flow": x0 - eps}[kind]
    got = from_x0(kind, process, x, t, x0)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x0_from(kind, process, x, t, want), x0, rtol=1e-9, atol=1e-9)
    if kind != "x0":  # negative control: a sign flip is far outside
        assert (got + want).abs().max() > want.abs().max()


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
    rate, flux = process.t_max * rate, process.t_max * flux  # time in units of the process's own
    scale = rate.abs() + flux.abs() + 1
    assert ((rate + flux).abs() / scale).max() < 1e-10
    assert ((rate - flux).abs() / scale).max() > 0.1


def abar(start, end, steps, power=1):
    """prod (1 - beta) with 60 digits."""
    with mpmath.workdps(60):
        a, b = mpmath.mpf(start) ** (mpmath.mpf(1) / power), mpmath.mpf(end) ** (mpmath.mpf(1) / power)
        out, product = [], mpmath.mpf(1)
        for j in range(steps):
            product *= 1 - (a + (b - a) * j / (steps - 1)) ** power
            out.append(product)
        return out


def cosine_abar(steps: int) -> list[mpmath.mpf]:
    """iDDPM's cosine products (arXiv:2102.09672, eq. 17 with its clip at 0.999), at 50 digits."""
    with mpmath.workdps(50):
        f = [
            mpmath.cos((mpmath.mpf(i) / steps + mpmath.mpf("0.008")) / mpmath.mpf("1.008") * mpmath.pi / 2) ** 2
            for i in range(steps + 1)
        ]
        out, product = [], mpmath.mpf(1)
        for j in range(steps):
            product *= 1 - min(1 - f[j + 1] / f[j], mpmath.mpf("0.999"))
            out.append(product)
        return out


LINEAR, SCALED = Discrete(), Discrete("scaled-linear", 0.00085, 0.012)
IDDPM = Discrete("cosine")


@pytest.mark.parametrize(
    ("discrete", "exact"),
    [(LINEAR, abar(1e-4, 0.02, 1000)), (SCALED, abar(0.00085, 0.012, 1000, 2)), (IDDPM, cosine_abar(1000))],
    ids=["ddpm", "sd", "iddpm"],
)
def test_discrete_at_its_timesteps(discrete, exact):
    """alpha^2 = abar_k at time k + 1, with the relative error of a sum of 1000 rounded logarithms up to 9.3."""
    t = torch.arange(1, 1001, dtype=torch.float64)
    alpha = torch.tensor([float(mpmath.sqrt(a)) for a in exact], dtype=torch.float64)
    sigma = torch.tensor([float(mpmath.sqrt(1 - a)) for a in exact], dtype=torch.float64)
    torch.testing.assert_close(discrete.alpha(t), alpha, rtol=1e-13, atol=0)
    torch.testing.assert_close(discrete.sigma(t), sigma, rtol=1e-13, atol=0)
    assert (discrete.alpha(t - 1)[1:] / alpha[1:] - 1).abs().min() > 2e-5  # negative control: off by one timestep


def test_discrete_reaches_the_known_noise_levels():
    """Stable Diffusion's sigmas run from 0.0292 to 14.6146 (k-diffusion), DDPM's to 157.4."""
    ends = ratio(SCALED, torch.tensor([1.0, 1000.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([0.0292, 14.6146], abs=5e-5)
    assert ratio(LINEAR, torch.tensor(1000.0).double()).item() == pytest.approx(157.4, abs=0.05)
    # iDDPM's clip is felt: without it abar_999 were cos^2(pi / 2) = 0
    assert ratio(IDDPM, torch.tensor(1000.0).double()).item() == pytest.approx(20_291, rel=1e-3)


@pytest.mark.parametrize("discrete", [LINEAR, SCALED, Discrete("linear", 0.1, 0.2, 5)], ids=["ddpm", "sd", "small"])
def test_discrete_between_its_timesteps(discrete, gen):
    """ln s is linear, below time 1 s itself; t_of is the inverse: in relative terms, 1e-12 at 1e5 random times."""
    k = torch.arange(1, discrete.steps, dtype=torch.float64)
    for w in (0.25, 0.5, 0.9):
        want = (1 - w) * ratio(discrete, k).log() + w * ratio(discrete, k + 1).log()
        torch.testing.assert_close(ratio(discrete, k + w).log(), want, rtol=0, atol=1e-13)
        gap = ratio(discrete, k + w) - ((1 - w) * ratio(discrete, k) + w * ratio(discrete, k + 1))
        assert gap.abs().max() > 1e-4  # negative control: not linear in s
    u = torch.rand(1000, generator=gen, dtype=torch.float64)
    torch.testing.assert_close(ratio(discrete, u), u * ratio(discrete, torch.ones(1).double()), rtol=1e-14, atol=0)
    t = torch.rand(100_000, generator=gen, dtype=torch.float64) * discrete.t_max
    t[: discrete.steps] = torch.arange(1, discrete.steps + 1)
    torch.testing.assert_close(discrete.t_of(ratio(discrete, t)), t, rtol=1e-12, atol=0)
    s = ratio(discrete, t)
    torch.testing.assert_close(ratio(discrete, discrete.t_of(s)), s, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        discrete.alpha(t) ** 2 + discrete.sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=4 * EPS
    )


def test_discrete_of_smaller_data(gen):
    """Images in [-0.5, 0.5]: x_t = sqrt(abar_k) x / 2 + sqrt(1 - abar_k) eps at time k + 1, and data itself at 0."""
    exact = abar(1e-4, 0.02, 1000)
    t = torch.arange(1, 1001, dtype=torch.float64)
    alpha = torch.tensor([float(mpmath.sqrt(a) / 2) for a in exact], dtype=torch.float64)
    sigma = torch.tensor([float(mpmath.sqrt(1 - a)) for a in exact], dtype=torch.float64)
    torch.testing.assert_close(HALF.alpha(t), alpha, rtol=1e-13, atol=0)
    torch.testing.assert_close(HALF.sigma(t), sigma, rtol=1e-13, atol=0)
    torch.testing.assert_close(ratio(HALF, t), 2 * ratio(LINEAR, t), rtol=1e-14, atol=0)
    # the inverse: in relative terms, at 1e5 random times, a fifth of them below timestep 0
    for process in (HALF, Discrete("linear", 0.1, 0.2, 5, data_scale=3.0)):
        u = torch.rand(100_000, generator=gen, dtype=torch.float64)
        u = torch.cat([u[:20_000], u[20_000:] * process.t_max, torch.ones(1)])
        torch.testing.assert_close(process.t_of(ratio(process, u)), u, rtol=1e-12, atol=0)
        s = ratio(process, u)
        torch.testing.assert_close(ratio(process, process.t_of(s)), s, rtol=1e-12, atol=0)
        assert process.alpha(torch.zeros((), dtype=torch.float64)) == 1
    # negative control: the time of a ratio is not that of a process of unscaled data
    assert (LINEAR.t_of(ratio(HALF, t)) - t)[:500].min() > 0.5


def test_discrete_has_the_slope_of_the_piece_below():
    """At time k + 1: the difference quotient over half a step down, not up, by d sigma / dt = s' alpha^3."""
    k = torch.tensor([2.0, 10.0, 500.0, 999.0], dtype=torch.float64)
    s, slope = ratio(LINEAR, k), LINEAR.d_sigma(k) / LINEAR.alpha(k) ** 3
    down, up = (s.log() - ratio(LINEAR, k - 0.5).log()) / 0.5, (ratio(LINEAR, k + 0.5).log() - s.log()) / 0.5
    torch.testing.assert_close(slope / s, down, rtol=1e-10, atol=0)
    assert ((down / up - 1).abs() > 1e-4).all()
    one = torch.ones((), dtype=torch.float64)
    assert (LINEAR.d_sigma(one) / LINEAR.alpha(one) ** 3).item() == pytest.approx(ratio(LINEAR, one).item(), rel=1e-12)


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
    assert build(schema.Discrete(name="discrete")) == LINEAR
    stable = schema.Discrete(name="discrete", schedule="scaled-linear", beta_start=0.00085, beta_end=0.012)
    assert build(stable) == SCALED
    assert build(schema.Discrete(name="discrete", steps=1001, data_scale=0.5)) == Discrete(steps=1001, data_scale=0.5)


def test_build_refuses_an_empty_range():
    with pytest.raises(RecipeError, match="not below") as fault:
        build(schema.Cosine(name="cosine", t_min=0.9, t_max=0.5))
    assert fault.value.code == 2
    assert fault.value.hint


def test_betas_that_fall_are_refused():
    with pytest.raises(ValueError, match=r"beta_start: 0\.03 is above beta_end: 0\.02"):
        schema.Discrete(name="discrete", beta_start=0.03)
