"""Purifiers: what stands in front of a classifier and takes the attack out of its images, one defence per file.

    symbol   meaning
    x        image in attack space, float32 in [0, 1]: every budget is in these units
    z        2 x - 1, what denoisers have learned: 8/255 of x is 16/255 of z
    t, t*    noise level of z_t = z + t eps, whatever the denoiser's own process (EDM's sigma)
    D(z, t)  the denoiser at that level, `Prior`, always without a label: the true one would be told

A purifier is differentiable in z, exactly and in the memory of one of its steps (`walk`), and reads its noise from the
tape of its images (`Noise`), so that a recomputed step finds the same numbers.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gentk.attacks.victim import Grad
from gentk.defences.noise import Noise


class Purifier(Protocol):
    """One defence with its settings."""

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser per purification, those with a backward pass counted once."""
        ...

    @property
    def random(self) -> bool:
        """Whether it draws noise."""
        ...

    @property
    def modes(self) -> tuple[Grad, ...]:
        """The gradients that tell different things of it (`gentk.attacks.victim`)."""
        ...

    def __call__(self, z: Tensor, noise: Noise) -> Tensor:
        """z (B, C, H, W) -> the purified z, not clamped; its gradient is exact."""
        ...

    def surrogate(self, z: Tensor, noise: Noise) -> Tensor:
        """A cheaper purifier, whose gradient an attacker may take where the exact one is masked or too dear."""
        ...
