"""EDM's stochastic sampler: Heun's method without churn, algorithm 2 with it. Orders stand with the other solvers'."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from gentk.errors import RecipeError
from gentk.processes import grids
from gentk.processes.process import expand
from gentk.processes.schedules import VE, VP, RectifiedFlow
from gentk.solvers import drawn, edm_stochastic, heun


def test_without_churn_it_is_heun_on_ve(mixture, gen):
    """In every process: it works in x / alpha. Heun's solver in `vp`'s own time is another method."""
    sigmas = grids.karras(9, 0.02, 40.0, 7.0)
    x = 40 * torch.randn(6, 2, generator=gen, dtype=torch.float64)
    want = heun.solve(lambda x, t, cond: mixture.denoise(VE(), x, t), VE(), x, sigmas, None)
    for process in (VE(), VP(), RectifiedFlow()):
        times = grids.to_times(process, sigmas)

        def denoiser(x, t, cond, process=process):
            return mixture.denoise(process, x, t)

        first = process.alpha(times[0]) * x
        got = edm_stochastic.solve(denoiser, process, first, times, None)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        if process.name == "vp":
            assert (heun.solve(denoiser, process, first, times, None) - want).abs().max() > 1e-3


def test_churn_is_algorithm_2(process, mixture, gen):
    """Against the algorithm written out in x / alpha and sigma, with the same noises."""
    sigmas = grids.karras(9, 0.02, 40.0, 7.0)
    churn, low, high, scale = 3.0, 0.05, 10.0, 1.003
    start = 40 * torch.randn(6, 2, generator=gen, dtype=torch.float64)
    draw, x, churned = drawn(torch.Generator().manual_seed(1)), start, 0
    for i, (s, r) in enumerate(pairwise(sigmas)):
        gamma = min(churn / 9, 2**0.5 - 1) if low <= s <= high else 0.0
        top = s + gamma * s
        if gamma:
            x, churned = x + (top**2 - s**2).sqrt() * scale * draw(x), churned + 1
        d = (x - mixture.denoise(VE(), x, top)) / top
        y = x + (r - top) * d
        x = y if i == 8 else x + (r - top) * (d / 2 + (y - mixture.denoise(VE(), y, r)) / r / 2)
    times = grids.to_times(process, sigmas)
    got = edm_stochastic.solve(
        lambda x, t, cond: mixture.denoise(process, x, t),
        process,
        expand(process.alpha(times[0]), start) * start,
        times,
        drawn(torch.Generator().manual_seed(1)),
        s_churn=churn,
        s_min=low,
        s_max=high,
        s_noise=scale,
    )
    assert 0 < churned < 9
    torch.testing.assert_close(got, x, rtol=0, atol=1e-12)


def test_a_churn_above_the_process_is_refused(gen):
    """The network has learned nothing above the top. Below s_max nothing is wrong with the same grid."""
    grid, x = grids.given([80.0, 10.0, 1.0]), torch.zeros(2, 2)
    with pytest.raises(RecipeError, match="above the largest"):
        edm_stochastic.solve(lambda x, t, cond: x, VE(), x, grid, drawn(gen), s_churn=1.0)
    edm_stochastic.solve(lambda x, t, cond: x, VE(), x, grid, drawn(gen), s_churn=1.0, s_max=50.0)
