"""One call of the denoiser: D(z + t* xi, t*), the cheapest purifier and a strong one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gentk.attacks.victim import Grad
from gentk.defences.noise import Noise
from gentk.defences.prior import Prior
from gentk.defences.walk import State, walk


@dataclass(frozen=True, eq=False)
class OneShot:
    """The purifier; with a distilled generator as `denoise` it is the method `one-step`."""

    denoise: Prior
    t_star: float

    modes: ClassVar[tuple[Grad, ...]] = ("full", "bpda", "blind")
    random = True
    nfe = 1

    def __call__(self, z: Tensor, noise: Noise) -> Tensor:
        """z (B, ...) -> the denoiser's answer, exactly differentiable."""

        def step(_: int, state: State) -> State:
            (z,) = state
            return (self.denoise(z + self.t_star * noise.normal("0.start", z), self.t_star),)

        (out,) = walk(step, 1, (z,))
        return out

    def surrogate(self, z: Tensor, noise: Noise) -> Tensor:
        """Itself: nothing is cheaper."""
        return self(z, noise)
