"""The denoiser: a network that outputs the exact quantity of any kind must give the exact E[x0 | x_t]."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gentk.processes.denoiser import Denoiser, at_sigma
from gentk.processes.guidance import guided
from gentk.processes.process import diffuse, expand, from_x0
from gentk.processes.schedules import VE, RectifiedFlow

SD = 0.7
PREDICTS = ("edm", "x0", "eps", "v", "flow")


class Exact(nn.Module):
    """What an ideally trained network outputs, from its input alone: the sample over its scale and the noise label."""

    def __init__(self, mixture, process, predicts):
        super().__init__()
        self.mixture, self.process, self.predicts = mixture, process, predicts

    def forward(self, x, c_noise, cond=None):
        s = (4 * c_noise).exp()
        t = self.process.t_of(s)
        alpha, sigma = expand(self.process.alpha(t), x), expand(self.process.sigma(t), x)
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
        assert seen.dtype == label.dtype == torch.bfloat16
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
