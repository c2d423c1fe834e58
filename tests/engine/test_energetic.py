"""Chains on energies and denoising by them, on Gaussians whose answers are known; annealed Langevin's exact law."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from gentk.engine.energetic import Chains, ladder, mode, tweedie
from gentk.errors import RecipeError, RunFailed
from gentk.nets.energy import Energy
from gentk.solvers import annealed_langevin

CPU = torch.device("cpu")


class Normal(nn.Module):
    """N(c, v I) of data about the centre, noised to t: as a body that sees h and s, with sd 1."""

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def forward(self, h: Tensor, s: Tensor | None) -> Tensor:
        t2 = torch.zeros(len(h)) if s is None else s**2
        return h.square().flatten(1).sum(1) * (1 + t2) / (2 * (self.variance + t2))


def normal(variance: float, levels: tuple[float, float] | None) -> Energy:
    return Energy(Normal(variance), centre=torch.tensor([1.0, -2.0]), sd=1.0, tail=None, levels=levels)


def drawn(gen: torch.Generator):
    return lambda x: torch.randn(x.shape, generator=gen, dtype=x.dtype)


def test_the_ladder_has_equal_ratios() -> None:
    levels = ladder((0.1, 10.0), 5)
    assert levels[0] == 10.0
    assert levels[-1] == pytest.approx(0.1)
    assert [a / b for a, b in itertools.pairwise(levels)] == pytest.approx([10**0.5] * 4)
    assert ladder((0.1, 10.0), 1) == [0.1]


@pytest.mark.parametrize("clean", [False, True])
def test_annealed_langevin_is_its_linear_recursion(clean: bool) -> None:
    """On N(0, v) the chain is linear: x' = (1 - a/2(v + t^2)) x + sqrt(a) xi, a = e t^2. Mean and variance, exactly.

    40,000 chains: the variance within four standard errors, 4 sqrt(2/n). With clean the last x shrinks by v/(v + t^2).
    """
    v, levels, steps, e, n = 0.5, [2.0, 1.0, 0.5], 4, 0.3, 40_000
    mean, variance = 3.0, 0.0
    for t in levels:
        a = e * t**2
        gain = 1 - a / (2 * (v + t**2))
        for _ in range(steps):
            mean, variance = gain * mean, gain**2 * variance + a
    if clean:
        shrink = v / (v + levels[-1] ** 2)
        mean, variance = shrink * mean, shrink**2 * variance
    x = torch.full((n, 1), 3.0, dtype=torch.float64)
    noise = drawn(torch.Generator().manual_seed(0))
    out = annealed_langevin.run(lambda x, t: -x / (v + t**2), x, levels, noise, steps=steps, step_size=e, clean=clean)
    assert float(out.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / n))
    assert float(out.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / n))


def test_annealed_langevin_counts_and_stays_finite() -> None:
    seen: list[int] = []
    scores: list[float] = []

    def score(x: Tensor, t: float) -> Tensor:
        scores.append(t)
        return torch.where(x > 0, torch.nan, -x)

    x = torch.tensor([[1.0], [-1.0]])
    out = annealed_langevin.run(score, x, [2.0, 1.0], torch.zeros_like, steps=3, clean=False, each=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert scores == [2.0] * 3 + [1.0] * 3
    assert float(out[0]) == 1.0, "a chain whose step is not finite stays"
    assert float(out[1]) != -1.0


@pytest.mark.parametrize(
    ("levels", "steps", "size", "message"),
    [([1.0, 2.0], 1, 0.1, "levels"), ([], 1, 0.1, "levels"), ([1.0], 0, 0.1, "steps"), ([1.0], 1, 4.0, "step_size")],
)
def test_settings_outside_their_range(levels: list[float], steps: int, size: float, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        annealed_langevin.run(lambda x, t: -x, torch.zeros(1, 1), levels, torch.zeros_like, steps=steps, step_size=size)


@pytest.mark.parametrize(
    ("levels", "kind"), [(None, "mala"), (None, "ula"), ((0.05, 3.0), "mala")], ids=["mala", "ula", "annealed"]
)
@pytest.mark.parametrize("longer", [0, 3])
def test_chains_reach_the_law_from_noise(levels: tuple[float, float] | None, kind: str, longer: int) -> None:
    """N((1, -2), 0.5): mean and standard deviation within 4 standard errors and the step's bias, also much later."""
    net = normal(0.5, levels)
    ladder_ = tuple(ladder(levels, 12)) if levels else ()
    size = 0.15 if levels else 0.05
    chains = Chains(net, (2,), CPU, steps=60, step_size=size, levels=ladder_, kind=kind, start=3.0, longer=longer)  # type: ignore[arg-type]
    x = chains(3000, 0, batch=1500)
    assert x.shape == (3000, 2)
    error = math.sqrt(0.5 / 3000)
    assert torch.allclose(x.mean(0), torch.tensor([1.0, -2.0]), atol=4.5 * error + 0.02)
    assert float(x.var(0).mean()) == pytest.approx(0.5, rel=0.12)
    assert chains.nfe == (60 * 12 * (1 + longer) + 1 if levels else 60 * (1 + longer))
    assert torch.equal(x, chains(3000, 0, batch=1500))
    assert not torch.equal(x, chains(3000, 1, batch=1500))


def test_tweedie_and_mode_are_the_gaussian_s() -> None:
    """y = x + sigma noise, x ~ N(c, v): E[x|y] = c + v/(v + sigma^2) (y - c); so is the mode, of the clean energy."""
    v, sigma = 0.5, 0.8
    y = torch.randn(50, 2)
    centre = torch.tensor([1.0, -2.0])
    exact = centre + v / (v + sigma**2) * (y - centre)
    torch.testing.assert_close(tweedie(normal(v, (0.05, 3.0)), y, sigma), exact)
    torch.testing.assert_close(mode(normal(v, None), y, sigma, steps=300), exact)
    wrong = y + sigma**2 * normal(v, None).score(y)
    assert float((wrong - exact).abs().max()) > 0.1, "Tweedie by the energy of clean data is another point"


def test_tweedie_knows_its_levels() -> None:
    for net, sigma in ((normal(0.5, (0.05, 3.0)), 5.0), (normal(0.5, (0.05, 3.0)), 0.01), (normal(0.5, None), 1.0)):
        with pytest.raises(ValueError, match="noise of"):
            tweedie(net, torch.zeros(1, 2), sigma)


def test_an_energy_that_has_diverged_is_said() -> None:
    class Bad(nn.Module):
        def forward(self, h: Tensor, s: Tensor | None) -> Tensor:
            return h.sum(1) * torch.nan

    net = Energy(Bad(), centre=torch.zeros(2), sd=1.0, tail=None, levels=None)
    with pytest.raises(RunFailed, match="not finite"):
        Chains(net, (2,), CPU, steps=2, step_size=0.1)(4, 0)
