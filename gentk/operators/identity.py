"""H = 1: nothing but noise has happened to the images (or points)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gentk.operators import Gain


@dataclass(frozen=True)
class Identity:
    """The identity on samples of `shape`."""

    shape: tuple[int, ...]

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of one y."""
        return self.shape

    def __call__(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """y."""
        return y

    def seen(self, y: Tensor) -> Tensor:
        """y."""
        return y

    def spectral(self, x: Tensor, f: Gain) -> Tensor:
        """f(1) x."""
        return x * float(f(torch.ones((), dtype=torch.float64)))
