"""Draws to compare a sampler with: exact ones, or Hamiltonian chains that have been found to agree.

Chains move in coordinates y, x = place(y), in which the target is roughly N(0, I): unit mass is then right. Leapfrog
steps are drawn anew for each transition, 1 to `steps`: a fixed number could be half a period of a normal law.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gentk.errors import RunFailed
from gentk.metrics.chains import effective_sample_size, split_r_hat
from gentk.solvers import Noise, chains, hmc
from gentk.solvers.chains import LogProb, State

R_HAT, ESS = 1.01, 400.0  # what Vehtari et al. 2021 ask of chains before their means are used


@dataclass(frozen=True, eq=False)
class Reference:
    """Draws (n, D) in random order; what made them; and of chains: time, diagnostics, the worst coordinate's.

    `ess` counts effective draws of the coordinates and of their squares, the fewest. `seconds` holds the warm-up too.
    """

    draws: Tensor
    by: str
    seconds: float = 0.0
    r_hat: float = 1.0
    ess: float = float("inf")
    leapfrogs: int = 0

    @property
    def converged(self) -> bool:
        """Whether the chains agree: a comparison with chains that do not says nothing."""
        return self.r_hat < R_HAT and self.ess > ESS

    @property
    def seconds_per_draw(self) -> float:
        """Wall time of one effective draw."""
        return self.seconds / self.ess


def chained(
    log_prob: LogProb,
    place: Callable[[Tensor], Tensor],
    dim: int,
    *,
    gen: Generator,
    chains_: int = 64,
    length: int = 250,
    warmup: int = 300,
    rounds: int = 3,
    steps: int = 8,
    thin: int = 1,
    start: float = 1.0,
) -> Reference:
    """HMC from N(0, start^2 I) in y, doubled up to `rounds` - 1 times until it has converged.

    log_prob: (N, D) -> (N,) of x. The last round's figures stand whether or not it has: ask `converged`.
    """

    def in_y(y: Tensor) -> Tensor:
        return log_prob(place(y))

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=gen, device=x.device, dtype=x.dtype)

    taken = 0

    def step(state: State, log_p: LogProb, step_size: float, noise: Noise) -> tuple[State, Tensor]:
        nonlocal taken
        # without synchronising a device: a host generator's number, keyed by the one that was given
        count = int(torch.randint(1, steps + 1, (1,), generator=lengths))
        taken += count
        return hmc.step(state, log_p, step_size, noise, steps=count)

    lengths = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=gen, device=gen.device)))
    begun = time.perf_counter()
    y = start * torch.randn(chains_, dim, generator=gen, device=gen.device)
    kept: list[Tensor] = []
    size, warm = 0.3, warmup
    found: Reference | None = None
    for round_ in range(rounds):
        result = chains.run(
            step,
            in_y,
            y,
            noise,
            draws=length * (1 if round_ == 0 else 2 ** (round_ - 1)),
            step_size=size,
            warmup=warm,
            thin=thin,
            target_accept=hmc.TARGET_ACCEPT if warm else None,
        )
        y, size, warm = result.x, result.step_size, 0
        assert result.draws is not None
        kept.append(result.draws)
        found = _judged(torch.cat(kept), place, time.perf_counter() - begun, taken)
        if found.converged:
            break
    assert found is not None
    return found


def _judged(y: Tensor, place: Callable[[Tensor], Tensor], seconds: float, leapfrogs: int) -> Reference:
    """Of draws (T, n, D)."""
    y = y.double().cpu()
    size = min(effective_sample_size(y).min(), effective_sample_size(y.square()).min())
    r_hat = max(split_r_hat(y).max(), split_r_hat(y.square()).max())
    if r_hat.isnan():
        raise RunFailed("the reference's chains do not move", hint="the density may have no gradient")
    flat = y.reshape(-1, y.shape[-1])
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))
    draws = place(flat[order].float()).cpu()
    return Reference(draws, "HMC", seconds, float(r_hat), float(size), leapfrogs)
