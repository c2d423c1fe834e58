"""No defence: what every other one is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gentk.attacks.victim import Grad
from gentk.defences.noise import Noise


@dataclass(frozen=True)
class Nothing:
    """z as it is."""

    modes: ClassVar[tuple[Grad, ...]] = ("full",)
    random = False
    nfe = 0

    def __call__(self, z: Tensor, noise: Noise) -> Tensor:
        """z."""
        return z

    def surrogate(self, z: Tensor, noise: Noise) -> Tensor:
        """z."""
        return z
