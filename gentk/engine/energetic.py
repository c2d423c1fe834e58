"""Drawing from an energy and denoising by it: what training, sampling and measuring of energies share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gentk.engine import dist, rng
from gentk.engine.draw import batches, starts
from gentk.errors import RunFailed
from gentk.nets.energy import Energy
from gentk.solvers import annealed_langevin, chains, drawn, mala, ula

_SHORT = 0.5  # of a time-dependent energy's smallest level: below it nothing was learned


def ladder(levels: tuple[float, float], count: int) -> list[float]:
    """`count` noise levels from the largest down to the smallest, each the same multiple of the next."""
    low, high = levels
    if count == 1:
        return [low]
    return [high * (low / high) ** (i / (count - 1)) for i in range(count)]


@dataclass(frozen=True)
class Chains:
    """Short chains from noise on an energy: `steps` at each of `levels`, or `steps` in all on a static one.

    Every chain starts from noise, never from data. Static energies are drawn from by `kind`, mala (its step adapted in
    the first half) or ula, starting at the data's centre with `start` standard deviations; time-dependent ones by
    annealed Langevin with steps of variance `step_size` t^2, from noise of the largest level. `longer` > 0 goes on
    for so many times the chain's length at the end, at the smallest level: chains that fall apart then were never near
    their law.
    """

    energy: Energy
    shape: tuple[int, ...]
    where: torch.device
    steps: int
    step_size: float
    levels: tuple[float, ...] = ()
    kind: Literal["mala", "ula"] = "mala"
    start: float = 1.0
    longer: int = 0

    @property
    def nfe(self) -> int:
        """Gradients of the energy per sample."""
        once = self.steps * max(1, len(self.levels))
        return once * (1 + self.longer) + (1 if self.levels else 0)

    def __call__(self, n: int, seed: int, *, batch: int = 500) -> Tensor:
        """Samples 0 to n of `seed`, (n, *shape) float32 on the CPU; the noise is that of a batch, not of a sample.

        Raises RunFailed where the energy is not finite.
        """
        parts = dist.current().spread(batches(0, n, batch), lambda part: self.part(*part, seed))
        return torch.cat(parts)

    def part(self, first: int, n: int, seed: int) -> Tensor:
        """Samples `first` to `first + n` of `seed`, in one batch."""
        z = starts(seed, first, n, self.shape).to(self.where)
        # One stream for all: chains take hundreds of steps, and a generator for each row would be most of their time.
        noise = drawn(rng.generator(seed, "chain", first))
        centre, sd = self.energy.centre, float(self.energy.sd)
        if self.levels:
            spread = math.sqrt(self.levels[0] ** 2 + sd**2)
            x = annealed_langevin.run(
                self.energy.score,
                centre + spread * z,
                list(self.levels),
                noise,
                steps=self.steps,
                step_size=self.step_size,
                clean=not self.longer,
            )
            if self.longer:
                rest = self.longer * self.steps * len(self.levels)
                x = annealed_langevin.run(
                    self.energy.score, x, [self.levels[-1]], noise, steps=rest, step_size=self.step_size
                )
        else:
            step, target = (mala.step, mala.TARGET_ACCEPT) if self.kind == "mala" else (ula.step, None)
            warmup = self.steps // 2 if target else 0
            x = chains.run(
                step,
                lambda x: -self.energy(x),
                centre + self.start * sd * z,
                noise,
                draws=1,
                thin=self.steps * (1 + self.longer) - warmup,
                warmup=warmup,
                step_size=self.step_size,
                target_accept=target,
                keep=False,
            ).x
        if not bool(x.isfinite().all()):
            raise RunFailed("chains on the energy left the finite numbers", hint="the energy has diverged")
        return x.float().cpu()


def tweedie(energy: Energy, y: Tensor, sigma: float) -> Tensor:
    """E[x | y] = y - sigma^2 grad E(y, sigma) for y = x + sigma noise (B, ...), by a time-dependent energy.

    Its level must be within the energy's levels: raises ValueError else, and for a static energy.
    """
    if energy.levels is None or not _SHORT * energy.levels[0] <= sigma <= energy.levels[1]:
        raise ValueError(f"noise of {sigma:g}: the energy knows {energy.levels}")
    return y + sigma**2 * energy.score(y, sigma)


def mode(energy: Energy, y: Tensor, sigma: float, *, steps: int = 100, step_size: float = 0.1) -> Tensor:
    """argmin E(x) + |x - y|^2 / 2 sigma^2 by `steps` gradient steps of step_size * sigma^2 from y: the likeliest x."""
    x = y
    for _ in range(steps):
        x = x + step_size * (sigma**2 * energy.score(x) - (x - y))
    return x
