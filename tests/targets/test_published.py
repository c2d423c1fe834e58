"""The targets of the literature: normalised, sampled exactly, modes where they are said to be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gentk import targets
from gentk.errors import RecipeError

F64 = torch.float64
N = 40_000

# Boxes outside which there is less than 1e-7 of the mass, and steps fine enough for the trapezoidal rule on smooth
# densities of that width; u1 to u4 are given by a grid of their own, and agree to its resolution.
GRIDS = {
    "normal": ((-6.0, 6.0), (-6.0, 6.0), 0.1),
    "mog2": ((-10.0, 10.0), (-6.0, 6.0), 0.1),
    "mog2-near": ((-8.0, 8.0), (-6.0, 6.0), 0.1),
    "mog2-close": ((-7.0, 7.0), (-7.0, 7.0), 0.1),
    "rosenbrock": ((-4.5, 6.5), (-2.5, 44.0), 0.05),
    "donut": ((-3.5, 3.5), (-3.5, 3.5), 0.01),
    "squiggle": ((-8.0, 8.0), (-5.0, 5.0), 0.02),
    "mcmc-banana": ((-11.0, 11.0), (-26.0, 5.0), 0.05),
    "u1": ((-5.6, 5.6), (-5.6, 5.6), 0.01),
    "u2": ((-5.6, 5.6), (-5.6, 5.6), 0.01),
    "u3": ((-5.6, 5.6), (-5.6, 5.6), 0.01),
    "u4": ((-5.6, 5.6), (-5.6, 5.6), 0.01),
}


def quadrature(name: str) -> tuple[Tensor, Tensor]:
    if name == "neal-funnel":  # x1 = e^(v / 2) sinh u, so that every width has its nodes
        v, u = torch.arange(-18, 18, 0.1, dtype=F64), torch.arange(-4, 4, 0.02, dtype=F64)
        grid = torch.cartesian_prod(v, u)
        width = (grid[:, 0] / 2).exp()
        x = torch.stack((width * grid[:, 1].sinh(), grid[:, 0] + 2), -1)
        weight = 0.1 * 0.02 * width * grid[:, 1].cosh()
    else:
        (left, right), (low, high), h = GRIDS[name]
        x = torch.cartesian_prod(torch.arange(left, right, h, dtype=F64), torch.arange(low, high, h, dtype=F64))
        weight = torch.full((len(x),), h * h, dtype=F64)
    log_prob = targets.find(name).log_prob
    assert log_prob is not None
    return x, weight * log_prob(x).exp()


def waves(x: Tensor) -> Tensor:
    """Bounded functions of a point, which see shapes, places and the weights of modes."""
    a, b = x.unbind(-1)
    return torch.stack([a.tanh(), b.tanh(), a.sin(), b.sin(), (2 * a).cos(), (2 * b).cos(), (a + b).sin()], -1)


@pytest.mark.parametrize("name", targets.published())
def test_density_and_samples_are_of_one_law(name: str) -> None:
    x, mass = quadrature(name)
    assert float(mass.sum()) == pytest.approx(1, abs=2e-4 if name.startswith("u") else 1e-6)
    f = waves(x)
    mean = mass @ f / mass.sum()
    spread = (mass @ f.square() / mass.sum() - mean**2).sqrt()
    samples = targets.find(name).sample(N, torch.Generator().manual_seed(1))
    assert samples.shape == (N, 2)
    assert samples.dtype == torch.float32
    off = (waves(samples.double()).mean(0) - mean) / (spread / math.sqrt(N))
    assert off.abs().max() < 5.5  # 7 features of 13 targets
    wide = (waves(1.25 * samples.double()).mean(0) - mean) / (spread / math.sqrt(N))
    assert wide.abs().max() > 5.5, "the control: a quarter too wide"


def test_names_lead_to_both_shelves_and_data_sets_keep_to_theirs() -> None:
    assert targets.find("ring8").centres is not None
    assert targets.find("mog2").centres == ((-4.0, 0.0), (4.0, 0.0))
    assert not set(targets.names()) & set(targets.published())
    with pytest.raises(RecipeError, match="did you mean `squiggle`"):
        targets.find("squigle")
