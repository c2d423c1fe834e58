"""Densities in the plane by quadrature: the normaliser of an energy, and Kullback-Leibler's divergence between two.

A sum over a square grid: for smooth densities that vanish at the box's edge its error falls faster than any power of
the spacing, once that is below the finest scale's deviation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gentk.errors import RunFailed

Plane = Callable[[Tensor], Tensor]
"""(n, 2) -> (n,)."""


class Box(NamedTuple):
    """A square [x - reach, x + reach] x [y - reach, y + reach] with `points` grid points a side."""

    x: float
    y: float
    reach: float
    points: int = 400

    @classmethod
    def around(cls, samples: Tensor, *, points: int = 400) -> Box:
        """The box of samples (N, 2) with a third more on every side."""
        low, high = samples.min(0).values, samples.max(0).values
        x, y = ((low + high) / 2).tolist()
        return cls(x, y, float((high - low).max()) * 0.5 * (1 + 2 / 3), points)

    @property
    def area(self) -> float:
        """Of one grid cell."""
        return (2 * self.reach / (self.points - 1)) ** 2

    def grid(self) -> Tensor:
        """(points^2, 2) float64, the first coordinate varying fastest."""
        steps = torch.linspace(-self.reach, self.reach, self.points, dtype=torch.float64)
        y, x = torch.meshgrid(self.y + steps, self.x + steps, indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], 1)


@torch.no_grad()  # a measurement
def on_grid(
    function: Plane, box: Box, *, dtype: torch.dtype = torch.float32, where: torch.device | str = "cpu"
) -> Tensor:
    """The function at every grid point: (points^2,) float64."""
    parts = [function(part.to(where, dtype)).double().cpu() for part in torch.split(box.grid(), 20_000)]
    return torch.cat(parts)


def log_normaliser(energies: Tensor, box: Box) -> float:
    """log Z, Z the integral of exp(-E) over the box. Raises RunFailed for energies that are not finite."""
    if not bool(energies.isfinite().all()):
        raise RunFailed("the energy is not finite on the data's box", hint="the energy has diverged")
    return float(torch.logsumexp(-energies, 0)) + math.log(box.area)


def divergence(log_density: Tensor, energies: Tensor, box: Box) -> float:
    """KL(p | q), p the density of `log_density` and q = exp(-E) / Z, both on the box's grid: in nats, >= 0.

    p is normalised on the box, as q is, so that what lies outside counts for neither.
    """
    log_p = log_density - torch.logsumexp(log_density, 0) - math.log(box.area)
    log_q = -energies - log_normaliser(energies, box)
    p = log_p.exp()
    return float(torch.where(p > 0, p * (log_p - log_q), 0.0).sum() * box.area)
