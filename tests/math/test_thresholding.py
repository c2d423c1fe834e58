"""Thresholding: exact values, per sample, and what it does to the order of a solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from gentk.processes.schedules import VE
from gentk.processes.thresholding import thresholded
from gentk.recipe.schema import DynamicThreshold, StaticThreshold

T = torch.tensor(1.0)


def through(x0, section):
    """What thresholding makes of a denoiser that says x0."""
    return thresholded(lambda x, t, cond=None: x, section)(x0, T, None)


def test_static_clips_to_its_range():
    x0 = torch.tensor([[-3.0, -1.0, -0.2, 0.0, 0.7, 1.0, 8.0]])
    want = torch.tensor([[-1.0, -1.0, -0.2, 0.0, 0.7, 1.0, 1.0]])
    assert torch.equal(through(x0, StaticThreshold(name="static")), want)
    assert torch.equal(through(x0, StaticThreshold(name="static", low=0.0, high=2.0)), x0.clamp(0, 2))


def test_dynamic_by_hand():
    """|x0| = 0, 1, .., 10: the 0.75-quantile is 7.5, so -8 becomes -1, 3 becomes 0.4, and 10 is clipped at 1."""
    x0 = torch.tensor([[0.0, 1, -2, 3, 4, 5, -6, 7, -8, 9, 10]], dtype=torch.float64)
    got = through(x0, DynamicThreshold(name="dynamic", quantile=0.75))
    want = torch.tensor([[0, 1, -2, 3, 4, 5, -6, 7, -7.5, 7.5, 7.5]]).double() / 7.5
    torch.testing.assert_close(got, want, rtol=1e-15, atol=0)


def test_dynamic_is_per_sample_and_leaves_alone_what_is_in_range(gen):
    calm = torch.rand(3, 8, 8, generator=gen) * 2 - 1
    wild = 5 * torch.randn(3, 8, 8, generator=gen)
    section = DynamicThreshold(name="dynamic", quantile=0.9)
    got = through(torch.stack([calm, wild]), section)
    assert torch.equal(got[0], calm)
    assert torch.equal(got[1], through(wild[None], section)[0])
    assert got[1].abs().max() == 1
    whole = wild.abs().quantile(0.9)
    assert not torch.allclose(calm.clamp(-whole, whole) / whole, calm)  # negative control: one s for the whole batch


def test_dynamic_is_static_where_s_may_not_grow(gen):
    x0 = 5 * torch.randn(4, 3, 8, 8, generator=gen)
    got = through(x0, DynamicThreshold(name="dynamic", max=1.0))
    assert torch.equal(got, through(x0, StaticThreshold(name="static")))
    capped = through(x0, DynamicThreshold(name="dynamic", max=2.0))
    assert torch.equal(capped, x0.clamp(-2, 2) / 2)
    assert torch.equal(through(x0, DynamicThreshold(name="dynamic", quantile=0.0)), got)  # the least |x0| is below 1


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.95, 0.995, 1.0])
@pytest.mark.parametrize("m", [1, 2, 11, 3072])
def test_the_quantile_is_that_of_torch_and_numpy(q, m, gen):
    """Read off where s is what the largest value is clipped at: x0 has a value above all others by a factor of 10."""
    x0 = 2 + torch.randn(5, m, generator=gen, dtype=torch.float64).abs()
    got = through(x0, DynamicThreshold(name="dynamic", quantile=q))
    s = x0.quantile(q, dim=1, keepdim=True)
    torch.testing.assert_close(got, x0.clamp(max=s) / s, rtol=1e-14, atol=0)
    np.testing.assert_allclose(s[:, 0], np.quantile(x0.numpy(), q, axis=1), rtol=1e-14)


def test_large_images():
    """More numbers than torch.quantile took for years, 2^24; |x0| is even on [0, 2], so s = 1.8."""
    x0 = torch.linspace(-2, 2, 2**24 + 2)[None]
    got = through(x0, DynamicThreshold(name="dynamic", quantile=0.9))
    torch.testing.assert_close(got[:, :: 2**20], x0[:, :: 2**20].clamp(-1.8, 1.8) / 1.8, rtol=1e-6, atol=1e-6)


def test_it_is_that_of_diffusers(gen):
    diffusers = pytest.importorskip("diffusers")
    x0 = 3 * torch.randn(4, 3, 16, 16, generator=gen)
    for q, top in ((0.995, 1.5), (0.9, 100.0)):
        theirs = diffusers.DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=q, sample_max_value=top)
        got = through(x0, DynamicThreshold(name="dynamic", quantile=q, max=top))
        torch.testing.assert_close(got, theirs._threshold_sample(x0), rtol=1e-6, atol=0)


def test_call_is_passed_on_and_dtype_kept():
    seen = []

    def denoiser(x, t, cond=None):
        seen.append((x, t, cond))
        return 3 * x

    x, label = torch.ones(2, 5, dtype=torch.float32), torch.tensor([0, 1])
    for section in (StaticThreshold(name="static"), DynamicThreshold(name="dynamic")):
        out = thresholded(denoiser, section)(x, T, label)
        assert out.dtype == torch.float32
        assert torch.equal(out, torch.ones(2, 5))
        assert seen[-1][0] is x
        assert seen[-1][1] is T
        assert seen[-1][2] is label
    assert len(seen) == 2


@pytest.mark.parametrize(
    "section",
    [StaticThreshold(name="static", low=-0.5, high=0.5), DynamicThreshold(name="dynamic", quantile=0.5)],
    ids=lambda s: s.name,
)
def test_clipping_breaks_the_order(section, mixture, gen):
    """The classical fourth-order method on d x / d lambda = D - x in EDM's coordinates: fourth order becomes second."""
    start = 5 * torch.randn(16, 2, generator=gen, dtype=torch.float64)

    def end(denoiser, n):
        def slope(x, lam):
            return denoiser(x, (-lam).exp()) - x

        x, h = start, np.log(100.0) / n
        for lam in -np.log(5.0) + h * torch.arange(n, dtype=torch.float64):
            k1 = slope(x, lam)
            k2 = slope(x + h / 2 * k1, lam + h / 2)
            k3 = slope(x + h / 2 * k2, lam + h / 2)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, lam + h))
        return x

    def order(denoiser, steps=(20, 40, 80)):
        reference = end(denoiser, 640)
        errors = [(end(denoiser, n) - reference).square().mean().sqrt().item() for n in steps]
        return -np.polyfit(np.log(steps), np.log(errors), 1)[0]

    def exact(x, t, cond=None):
        return mixture.denoise(VE(), x, t)

    assert order(exact) == pytest.approx(4, abs=0.2)
    assert order(thresholded(exact, section)) < 3


@pytest.mark.parametrize(
    ("section", "keys", "words"),
    [
        (StaticThreshold, {"low": 1.0, "high": -1.0}, "low: 1 is not below high: -1"),
        (DynamicThreshold, {"quantile": 1.5}, "less than or equal to 1"),
        (DynamicThreshold, {"max": 0.5}, "greater than or equal to 1"),
    ],
)
def test_sections_refuse_nonsense(section, keys, words):
    with pytest.raises(ValidationError, match=words):
        section(name="static" if section is StaticThreshold else "dynamic", **keys)
