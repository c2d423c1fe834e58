"""The denoiser: a network that outputs the exact quantity of any kind must give the exact E[x0 | x_t]."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gentk.processes.denoiser import Denoiser, at_sigma
from gentk.processes.guidance import guided
from gentk.processes.process import diffuse, expand, from_x0
from gentk.processes.schedules import VE, VP, Discrete, RectifiedFlow
from gentk.recipe.schema import Inputs

SD = 0.7
DEFAULT = Inputs()
TIME = Inputs(scale="process", label="time", factor=999.0)
PREDICTS = ("edm", "x0", "eps", "v", "flow", "reverse-eps", "reverse-flow")


class Exact(nn.Module):
    """What an ideally trained network outputs, from its input alone: the sample, scaled or not, and the noise label."""

    def __init__(self, mixture, process, predicts, inputs=DEFAULT):
        super().__init__()
        self.mixture, self.process, self.predicts, self.inputs = mixture, process, predicts, inputs

    def forward(self, x, c_noise, cond=None):
        value = (c_noise - self.inputs.offset) / self.inputs.factor
        t = value if self.inputs.label == "time" else self.process.t_of(value.exp())
        s = self.process.sigma(t) / self.process.alpha(t)
        alpha, sigma = expand(self.process.alpha(t), x), expand(self.process.sigma(t), x)
        if self.inputs.scale == "unit":
            x = x * (alpha**2 * SD**2 + sigma**2).sqrt()
        x0 = self.mixture.denoise(self.process, x, t)
        if self.predicts != "edm":
            return from_x0(self.predicts, self.process, x, t, x0)
        s, x_hat = expand(s, x), x / alpha  # EDM's own formulas, in its own coordinates
        c_skip, c_out = SD**2 / (s**2 + SD**2), s * SD / (s**2 + SD**2).sqrt()
        return (x0 - c_skip * x_hat) / c_out


class Zero(nn.Module):
    def forward(self, x, c_noise, cond=None):
        assert x.isfinite().all()
        assert c_noise.isfinite().all()
        return torch.zeros_like(x)


class Recorder(nn.Module):
    """A layer that remembers what it was given."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.seen = layer, []

    def forward(self, x, c_noise, cond=None):
        self.seen.append((x, c_noise, cond))
        return self.layer(x)


def convolution():
    return Recorder(nn.Conv2d(3, 3, 3, padding=1))


def points(mixture, process, gen, n=60):
    s = torch.logspace(-2, 1.5, n, dtype=torch.float64)
    t = process.t_of(s)
    return s, t, diffuse(process, mixture.sample(n, gen), t, torch.randn(n, 2, generator=gen, dtype=torch.float64))


@pytest.mark.parametrize("predicts", PREDICTS)
def test_exact_network_gives_the_exact_denoiser(process, predicts, mixture, gen):
    _, t, x = points(mixture, process, gen)
    denoiser = Denoiser(Exact(mixture, process, predicts), process, predicts, SD)
    want = mixture.denoise(process, x, t)
    torch.testing.assert_close(denoiser(x, t), want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(denoiser(x[7:9], t[7]), mixture.denoise(process, x[7:9], t[7]), rtol=1e-9, atol=1e-9)
    # negative controls: read as another kind, or at another noise level, the same network is wrong
    other = Denoiser(denoiser.net, process, "x0" if predicts != "x0" else "v", SD)
    assert (other(x, t) - want).abs().max() > 0.1
    assert (denoiser(x, process.t_of(torch.logspace(-2, 1.5, 60, dtype=torch.float64) * 1.1)) - want).abs().max() > 1e-3


@pytest.mark.parametrize("predicts", PREDICTS)
def test_at_sigma_agrees_across_processes(process, predicts, mixture, gen):
    s, _, x_hat = points(mixture, VE(), gen)
    got = at_sigma(Denoiser(Exact(mixture, process, predicts), process, predicts, SD), x_hat, s)
    torch.testing.assert_close(got, mixture.denoise(VE(), x_hat, s), rtol=1e-9, atol=1e-9)


# what published networks take and give, by hand: process, predicts, inputs, and for x_hat = x0 + s eps their own
# (c_in, label, c_skip, c_out) of D = c_skip x_hat + c_out F(c_in x_hat, label)
LN2 = 0.6931471805599453


def beta_time(s):
    """EDM's inverse of its `VP` column (arXiv:2206.00364, table 1): beta_d 19.9, beta_min 0.1."""
    return ((0.1**2 + 2 * 19.9 * (1 + s**2).log()).sqrt() - 0.1) / 19.9


def timestep(s, betas):
    """The timestep of noise level s, which is one of the process's."""
    abar = (1 - betas).cumprod(0)
    return ((1 / abar - 1).sqrt()[None] - s[:, None]).abs().argmin(1).double()


DDPM = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
MNIST = torch.tensor([1e-4 + (t / 1000) * (0.02 - 1e-4) for t in range(1001)], dtype=torch.float64)
CONVENTIONS = {
    "edm": (
        (VE(), "edm", DEFAULT),
        lambda s: (
            1 / (s**2 + SD**2).sqrt(),
            s.log() / 4,
            SD**2 / (s**2 + SD**2),
            s * SD / (s**2 + SD**2).sqrt(),
        ),
    ),
    "vp baseline": ((VP(), "eps", TIME), lambda s: (1 / (s**2 + 1).sqrt(), 999 * beta_time(s), 1 + 0 * s, -s)),
    "ve baseline": (
        (VE(), "reverse-eps", Inputs(scale="process", factor=1.0, offset=-LN2)),
        lambda s: (1 + 0 * s, (s / 2).log(), 1 + 0 * s, s),
    ),
    # Liu et al.: X_t' = t' x1 + (1 - t') z = (x1 + s z) / (1 + s), so t' = 1 / (1 + s); F = x1 - z, x1 = X + (1 - t') F
    "rectified flow": (
        (RectifiedFlow(), "reverse-flow", Inputs(scale="process", label="time", factor=-999.0, offset=999.0)),
        lambda s: (1 / (1 + s), 999 / (1 + s), 1 / (1 + s), s / (1 + s)),
    ),
    "torchcfm": (
        (RectifiedFlow(), "reverse-flow", Inputs(scale="process", label="time", factor=-1.0, offset=1.0)),
        lambda s: (1 / (1 + s), 1 / (1 + s), 1 / (1 + s), s / (1 + s)),
    ),
    "ddpm": (
        (Discrete(), "eps", Inputs(scale="process", label="time", factor=1.0, offset=-1.0)),
        lambda s: (1 / (1 + s**2).sqrt(), timestep(s, DDPM), 1 + 0 * s, -s),
    ),
    # z = sqrt(abar) x / 2 + sqrt(1 - abar) eps of data x: in terms of x + s eps the network's own level is s / 2
    "mnist": (
        (
            Discrete(steps=1001, data_scale=0.5),
            "eps",
            Inputs(scale="process", label="time", factor=1e-3, offset=-1e-3),
        ),
        lambda s: (0.5 / (1 + (s / 2) ** 2).sqrt(), timestep(s / 2, MNIST) / 1000, 1 + 0 * s, -s),
    ),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_published_conventions(name, gen):
    """Input, label and denoiser are those that the network's authors wrote, with all times in one and one by one."""
    (process, predicts, inputs), formula = CONVENTIONS[name]
    t = torch.tensor([2.0, 77.0, 500.0, 988.0], dtype=torch.float64)
    if not isinstance(process, Discrete):
        t = process.t_of(torch.tensor([0.01, 0.4, 3.0, 70.0], dtype=torch.float64))
    s = process.sigma(t) / process.alpha(t)
    c_in, label, c_skip, c_out = formula(s)
    x_hat = torch.randn(4, 3, 2, 2, generator=gen, dtype=torch.float64) * expand(s, torch.zeros(4, 3, 2, 2).double())
    net = Recorder(nn.Conv2d(3, 3, 1)).double()
    denoiser = Denoiser(net, process, predicts, SD, inputs)

    def wrong(other):
        return (at_sigma(other, x_hat, s) - want).abs().max() > 1e-3

    with torch.no_grad():
        want = expand(c_skip, x_hat) * x_hat + expand(c_out, x_hat) * net.layer(expand(c_in, x_hat) * x_hat)
        torch.testing.assert_close(at_sigma(denoiser, x_hat, s), want, rtol=1e-9, atol=1e-9)
        seen, c_noise, _ = net.seen[-1]
        torch.testing.assert_close(seen, expand(c_in, x_hat) * x_hat, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(c_noise, label, rtol=1e-9, atol=1e-9)
        for i in range(4):  # one number for all takes the other way
            x_t = expand(process.alpha(t[i]), x_hat) * x_hat[i : i + 1]
            torch.testing.assert_close(denoiser(x_t, t[i]), want[i : i + 1], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(net.seen[-1][1], label[i : i + 1], rtol=1e-9, atol=1e-9)
        # negative controls: the sign of the output, the input's scale
        signs = {"eps": "reverse-eps", "reverse-eps": "eps", "reverse-flow": "flow"}
        assert predicts == "edm" or wrong(Denoiser(net, process, signs[predicts], SD, inputs))
        scale = "process" if inputs.scale == "unit" else "unit"
        assert wrong(Denoiser(net, process, predicts, SD, inputs.model_copy(update={"scale": scale})))


@pytest.mark.parametrize(
    "inputs", [TIME, Inputs(scale="process", factor=-2.0, offset=3.0), Inputs(label="time")], ids=str
)
@pytest.mark.parametrize("predicts", PREDICTS)
def test_every_input_gives_the_exact_denoiser(process, predicts, inputs, mixture, gen):
    _, t, x = points(mixture, process, gen)
    denoiser = Denoiser(Exact(mixture, process, predicts, inputs), process, predicts, SD, inputs)
    want = mixture.denoise(process, x, t)
    torch.testing.assert_close(denoiser(x, t), want, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(denoiser(x[7:9], t[7]), mixture.denoise(process, x[7:9], t[7]), rtol=1e-8, atol=1e-8)
    other = Denoiser(denoiser.net, process, predicts, SD, inputs.model_copy(update={"factor": 0.9 * inputs.factor}))
    assert (other(x, t) - want).abs().max() > 1e-4  # negative control: the label is heard


def test_the_label_keeps_its_digits_in_half_precision():
    """Timesteps 998 and 999 of a bfloat16 network are two labels, which bfloat16 itself would make one."""
    net = convolution().to(torch.bfloat16)
    denoiser = Denoiser(net, Discrete(), "eps", SD, Inputs(scale="process", label="time", factor=1.0, offset=-1.0))
    x = torch.zeros(2, 3, 4, 4)
    denoiser(x, torch.tensor([999.0, 1000.0]))
    denoiser(x, torch.tensor(1000.0))
    assert net.seen[0][1].tolist() == [998.0, 999.0]
    assert net.seen[1][1].tolist() == [999.0, 999.0]


def test_gradient_in_x_is_the_exact_denoiser_s(process, mixture, gen):
    _, t, x = points(mixture, process, gen)
    x.requires_grad_()
    want = torch.autograd.grad(mixture.denoise(process, x, t)[:, 0].sum(), x)[0]
    got = torch.autograd.grad(Denoiser(Exact(mixture, process, "edm"), process, "edm", SD)(x, t)[:, 0].sum(), x)[0]
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_edm_form_at_the_ends_of_time(process, gen):
    """At t = 0 it is the identity; at t_max, alpha = 0 included, it is finite."""
    x = torch.randn(5, 2, generator=gen, dtype=torch.float64)
    denoiser = Denoiser(Zero(), process, "edm", SD)
    torch.testing.assert_close(denoiser(x, torch.tensor(0.0)), x, rtol=1e-15, atol=0)
    assert denoiser(x, torch.tensor(process.t_max)).isfinite().all()


def test_network_input_has_unit_variance(process, gen):
    """x_t / n over 40 000 samples: the standard error of the variance is sqrt(2 / n) = 0.007; bound 5 of them."""
    n = 40_000
    x0, eps = torch.randn(2, n, 1, generator=gen, dtype=torch.float64)
    for s in (0.05, 0.7, 20.0):
        net = Recorder(nn.Identity())
        t = process.t_of(torch.tensor(s, dtype=torch.float64))
        Denoiser(net, process, "edm", SD)(diffuse(process, SD * x0, t, eps), t)
        assert abs(net.seen[0][0].var().item() - 1) < 5 * (2 / n) ** 0.5


@pytest.mark.parametrize("predicts", PREDICTS)
def test_dtypes_and_memory_format(predicts, gen):
    net = convolution().to(torch.bfloat16)
    denoiser = Denoiser(net, RectifiedFlow(), predicts, SD)
    x = torch.randn(4, 3, 8, 8, generator=gen).to(memory_format=torch.channels_last)
    cond = torch.arange(4)
    for t in (torch.rand(4, generator=gen, dtype=torch.float64) * 0.9 + 0.05, torch.tensor(0.3)):
        out = denoiser(x, t, cond)
        seen, label, seen_cond = net.seen.pop()
        assert out.dtype == torch.float32
        assert out.shape == x.shape
        assert seen.dtype == torch.bfloat16
        assert label.dtype == torch.float32
        assert label.shape == (4,)
        assert seen_cond is cond
        assert seen.is_contiguous(memory_format=torch.channels_last)
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_label_is_a_quarter_of_the_log_ratio(process):
    net = convolution().double()
    s = torch.tensor([0.01, 0.5, 30.0], dtype=torch.float64)
    Denoiser(net, process, "v", SD)(torch.zeros(3, 3, 4, 4, dtype=torch.float64), process.t_of(s))
    torch.testing.assert_close(net.seen[0][1], s.log() / 4, rtol=1e-12, atol=1e-12)


def test_state_dict_holds_the_network_only():
    denoiser = Denoiser(convolution(), VE(), "edm", SD)
    assert set(denoiser.state_dict()) == {"net.layer.weight", "net.layer.bias"}
    assert denoiser.process == VE()
    assert denoiser.predicts == "edm"
    assert denoiser.sigma_data == SD


def test_guidance_extrapolates_and_counts_its_calls():
    calls = []

    def denoiser(x, t, cond=None):
        calls.append(cond)
        return x * 0 + (1.0 if cond is None else 3.0)

    x, t, y = torch.zeros(2, 1), torch.tensor(1.0), torch.tensor([0, 1])
    for scale, value, n in ((0.0, 1.0, 1), (1.0, 3.0, 1), (2.5, 6.0, 2)):
        calls.clear()
        assert (guided(denoiser, scale)(x, t, y) == value).all()
        assert len(calls) == n
    calls.clear()
    assert (guided(denoiser, 2.5)(x, t, None) == 1).all()
    assert calls == [None]
    assert guided(denoiser, 1.0) is denoiser
