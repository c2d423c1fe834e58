"""Drawing samples from a denoiser with a solver, so that sample k does not depend on the batch it is drawn in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gentk.engine import rng
from gentk.errors import RunFailed
from gentk.nets.text.prompts import Prompts
from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process, ratio


def starts(seed: int, first: int, n: int, shape: tuple[int, ...]) -> Tensor:
    """The unit noise that samples `first` to `first + n` start from: (n, *shape) float32 on the CPU."""
    return rng.noise(seed, first, n, shape, purpose="start")


def labels(first: int, n: int, cycle: tuple[int, ...]) -> Tensor | None:
    """Class of sample k: entry k of the endless repetition of `cycle`, (n,) int64; None where there are no classes."""
    return torch.tensor([cycle[k % len(cycle)] for k in range(first, first + n)]) if cycle else None


Cycle = tuple[int, ...] | Prompts | Callable[[int, int], Prompts]
"""What samples are told: classes or prompts in turn, without end, or (first, n) -> those of samples `first` on."""


def conditions(first: int, n: int, cycle: Cycle) -> Any:
    """What samples `first` to `first + n` are told: labels (n,), or prompts; None for no classes."""
    if callable(cycle):
        return cycle(first, n)
    if isinstance(cycle, Prompts):
        return cycle[[k % len(cycle) for k in range(first, first + n)]]
    return labels(first, n, cycle)


def batches(first: int, n: int, batch: int) -> list[tuple[int, int]]:
    """(first sample, count) of every batch of n samples."""
    return [(start, min(batch, first + n - start)) for start in range(first, first + n, batch)]


@torch.no_grad()  # sampling only: the solvers themselves are differentiable
def draw(
    denoiser: Denoise,
    process: Process,
    solve: Callable[..., Tensor],
    grid: Tensor,
    *,
    shape: tuple[int, ...],
    cycle: Cycle,
    seed: int,
    first: int,
    n: int,
    where: torch.device,
    **own: Any,
) -> Tensor:
    """Samples `first` to `first + n` in one batch: float32 on the CPU (n, *shape), the same in any other batch.

    `grid` holds process times and starts at the noisiest; the first state is sigma(grid[0]) times unit noise. `own`
    goes to the solver. Raises RunFailed where the denoiser's output is not finite, with the call and its noise level.
    """
    x = starts(seed, first, n, shape).to(where) * process.sigma(grid[0]).to(where, torch.float32)
    cond = conditions(first, n, cycle)
    watch = Watch(denoiser)
    noise = rng.streams(seed, first, n, purpose="solver")
    x = solve(watch, process, x, grid, noise, cond=None if cond is None else cond.to(where), **own)
    watch.check(process, f"samples {first} to {first + n - 1}")
    return x.float().cpu()


class Watch:
    """A denoiser that remembers whether each output was finite, without waiting for a device to say so."""

    def __init__(self, denoiser: Denoise) -> None:
        self.denoiser = denoiser
        self.times: list[Tensor] = []
        self.finite: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The denoiser's answer."""
        x0 = self.denoiser(x, t, cond)
        self.times.append(t)
        self.finite.append(torch.isfinite(x0).all())
        return x0

    def check(self, process: Process, what: str) -> None:
        """Raises RunFailed, naming `what`, the call and its noise level, if an answer was not finite."""
        finite = torch.stack(self.finite).tolist()
        if not all(finite):
            k = finite.index(False)
            s = float(ratio(process, self.times[k].double()))
            raise RunFailed(
                f"{what}: the model's output is not finite at call {k + 1} of {len(finite)}, noise level {s:.4g}",
                hint="the model has diverged, or is asked outside of what it has learned",
            )
