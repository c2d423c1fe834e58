"""Normalisers and KL by quadrature against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gentk import targets
from gentk.errors import RunFailed
from gentk.metrics.quadrature import Box, divergence, log_normaliser, on_grid

BOX = Box(0.3, -0.2, 9.0, 300)


def gauss(mean: float, variance: float, scale: float = 1.0) -> Tensor:
    """The log-density of N(mean, variance I) on the grid, times a constant's logarithm."""
    z = BOX.grid()
    return -(z - mean).square().sum(1) / (2 * variance) - math.log(2 * math.pi * variance) + math.log(scale)


def test_the_normaliser_of_a_gaussian() -> None:
    assert log_normaliser(-gauss(0.0, 1.0, 7.0), BOX) == pytest.approx(math.log(7.0), abs=1e-9)


def test_kl_of_two_gaussians() -> None:
    """KL = (v/w + d^2 / w - 1 + ln w/v), summed over two coordinates, halved; a constant in the energy is nothing."""
    v, w, d = 0.5, 1.2, 0.7
    exact = 2 * 0.5 * (v / w + d**2 / w - 1 + math.log(w / v))
    assert divergence(gauss(0.0, v), -gauss(d, w) + 5.0, BOX) == pytest.approx(exact, abs=1e-9)
    assert divergence(gauss(0.0, v, 3.0), -gauss(0.0, v), BOX) == pytest.approx(0, abs=1e-9)
    assert divergence(gauss(d, w), -gauss(0.0, v), BOX) != pytest.approx(exact, rel=0.1), "it has a direction"


def test_narrow_modes_are_resolved() -> None:
    """ring8's modes of deviation 0.1 on the data's own box: mass 1 to 1e-6, and nothing lies outside."""
    target = targets.find("ring8")
    x = target.sample(20_000, torch.Generator().manual_seed(0))
    box = Box.around(x)
    assert bool(((x - torch.tensor([box.x, box.y])).abs() < box.reach).all())
    assert target.log_prob is not None
    log_p = on_grid(target.log_prob, box, dtype=torch.float64)
    assert log_normaliser(-log_p, box) == pytest.approx(0, abs=1e-6)


def test_an_energy_that_is_not_finite_is_said() -> None:
    with pytest.raises(RunFailed, match="not finite"):
        log_normaliser(torch.tensor([0.0, math.nan]), BOX)
