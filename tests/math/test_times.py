"""Laws of the drawn noise levels, by Kolmogorov-Smirnov distance to the stated distribution function.

The bound 1.95 / sqrt(n) is the statistic's 0.1 % point; seeds are fixed, so a pass is a pass for ever.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from gentk.processes.process import ratio
from gentk.processes.schedules import VE, RectifiedFlow
from gentk.processes.times import draw, flow_time, sigma_of
from gentk.recipe import schema

N = 20_000
BOUND = 1.95 / math.sqrt(N)


def distance(sample, cdf):
    return stats.kstest(sample.numpy(), cdf).statistic


def test_lognormal(process, gen):
    s = ratio(process, draw(schema.LogNormal(name="lognormal", mean=-1.2, std=1.2), process, N, gen, "cpu"))
    assert distance((s.log() + 1.2) / 1.2, "norm") < BOUND
    assert distance((s.log() + 1.1) / 1.2, "norm") > 2 * BOUND  # negative controls: mean and spread off by 8 %
    assert distance((s.log() + 1.2) / 1.3, "norm") > BOUND


def test_karras_uniform(process, gen):
    """SiD's law: uniform in sigma^(1/7) from 0.002 to the level at 0.8 of the way to 80, which is 24.4."""
    s = ratio(process, draw(schema.KarrasUniform(name="karras"), process, N, gen, "cpu"))
    lo, hi = 0.002 ** (1 / 7), 80 ** (1 / 7)
    u = (s ** (1 / 7) - lo) / (hi - lo) / 0.8
    assert distance(u, "uniform") < BOUND
    assert distance(u * 0.95, "uniform") > 2 * BOUND
    assert s.max().item() == pytest.approx(24.4, abs=0.1)
    assert s.max() < 24.42
    assert s.min() >= 0.002 * (1 - 1e-9)


def test_uniform_time(process, gen):
    t = draw(schema.UniformTime(name="uniform"), process, N, gen, "cpu")
    assert distance((t - process.t_min) / (process.t_max - process.t_min), "uniform") < BOUND


def test_logit_normal_time(process, gen):
    t = draw(schema.LogitNormal(name="logit-normal", mean=0.3, std=0.8), process, N, gen, "cpu")
    u = (t - process.t_min) / (process.t_max - process.t_min)
    assert distance((u.logit() - 0.3) / 0.8, "norm") < BOUND
    assert distance(u.logit() / 0.8, "norm") > 2 * BOUND


def test_uniform_in_flow_time(process, gen):
    """t = s / (1 + s) uniform between the process's ends, whatever its own clock; that clock's law is another one."""
    ends = flow_time(ratio(process, torch.tensor([process.t_min, process.t_max]).double()))
    t = flow_time(ratio(process, draw(schema.UniformTime(name="uniform", clock="flow"), process, N, gen, "cpu")))
    assert distance((t - ends[0]) / (ends[1] - ends[0]), "uniform") < BOUND
    own = flow_time(ratio(process, draw(schema.UniformTime(name="uniform"), process, N, gen, "cpu")))
    if process.name != "rectified-flow":  # the one whose own clock it is
        assert distance((own - ends[0]) / (ends[1] - ends[0]), "uniform") > 2 * BOUND


def test_shifted_flow_time(process, gen):
    """SD3's map s t / (1 + (s - 1) t) once: its inverse gives the unshifted law back, its double does not."""
    section = schema.LogitNormal(name="logit-normal", mean=0.3, std=0.8, clock="flow", shift=3.0)
    low, high = flow_time(ratio(process, torch.tensor([process.t_min, process.t_max]).double())).tolist()

    def back(t):
        t = t / (3 - 2 * t)
        return ((t - low) / (high - low)).logit()

    t = flow_time(ratio(process, draw(section, process, N, gen, "cpu")))
    inside = t < high * (1 - 1e-9)  # shifted beyond the process's end, they stand on it
    assert inside.double().mean() > 0.9
    u = (back(t) - 0.3) / 0.8
    top = u[inside].max()
    assert distance(u.clamp_max(top), lambda x: stats.norm.cdf(x) * (x < top.item()) + (x >= top.item())) < BOUND
    assert distance(u - torch.tensor(3.0).log() / 0.8, "norm") > 2 * BOUND, "the control: not shifted at all"


def test_flow_time_and_back():
    s = torch.tensor([0.0, 1e-3, 1.0, 2.5, 1e6, torch.inf], dtype=torch.float64)
    want = torch.tensor([0.0, 1e-3 / 1.001, 0.5, 2.5 / 3.5, 1e6 / (1e6 + 1), 1.0], dtype=torch.float64)
    torch.testing.assert_close(flow_time(s), want, rtol=1e-14, atol=0)
    torch.testing.assert_close(sigma_of(flow_time(s)), s, rtol=1e-9, atol=0)


def test_a_shift_needs_the_clock_that_it_moves():
    for kind, name in ((schema.UniformTime, "uniform"), (schema.LogitNormal, "logit-normal")):
        with pytest.raises(ValueError, match="set clock: flow"):
            kind(name=name, shift=3.0)


@pytest.mark.parametrize(
    "section",
    [
        schema.UniformTime(name="uniform", clock="flow", shift=3.0),
        schema.LogitNormal(name="logit-normal", clock="flow"),
        schema.LogNormal(name="lognormal"),
        schema.KarrasUniform(name="karras"),
        schema.UniformTime(name="uniform"),
        schema.LogitNormal(name="logit-normal"),
    ],
    ids=lambda s: s.name,
)
def test_draws_depend_on_the_generator_alone(section, process):
    before = torch.get_rng_state()
    a, b, c = (draw(section, process, 64, torch.Generator().manual_seed(k), "cpu") for k in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())
    assert a.shape == (64,)
    assert a.dtype == torch.float64
    assert ((a >= process.t_min) & (a <= process.t_max)).all()


def test_draws_stay_inside_the_process(gen):
    """Levels beyond the ends go to the ends: here a third and more of them."""
    t = draw(schema.LogNormal(name="lognormal", mean=0.0, std=2.0), VE(0.5, 2.0), 1000, gen, "cpu")
    assert t.min() == 0.5
    assert t.max() == 2.0
    assert ((t > 0.5) & (t < 2.0)).sum() > 100
    t = draw(schema.LogNormal(name="lognormal", mean=9.0, std=1.0), RectifiedFlow(1e-4, 0.99), 1000, gen, "cpu")
    assert t.max() == 0.99
