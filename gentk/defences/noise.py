"""The noise of one purification: what a tape says under names of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gentk.attacks.victim import Tape


@dataclass(frozen=True, eq=False)
class Noise:
    """The numbers of `tape` whose names begin with `prefix`: a second purification of the same rows has another."""

    tape: Tape
    prefix: str = ""

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Standard normal of the shape, dtype and device of `like` (B, ...); row i is row i of the tape."""
        return self.tape.normal(self.prefix + name, like.shape[1:], like=like)

    def uniform(self, name: str, like: Tensor) -> Tensor:
        """Uniform on [0, 1), one number a row: (B,), dtype and device of `like`."""
        return self.tape.uniform(self.prefix + name, (), like=like)
