"""Drawing samples from a denoiser with a solver, so that sample k does not depend on the batch it is drawn in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gentk.engine import rng
from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process


def starts(seed: int, first: int, n: int, shape: tuple[int, ...]) -> Tensor:
    """The unit noise that samples `first` to `first + n` start from: (n, *shape) float32 on the CPU."""
    return rng.noise(seed, first, n, shape, purpose="start")


def labels(first: int, n: int, cycle: tuple[int, ...]) -> Tensor | None:
    """Class of sample k: entry k of the endless repetition of `cycle`, (n,) int64; None where there are no classes."""
    return torch.tensor([cycle[k % len(cycle)] for k in range(first, first + n)]) if cycle else None


@torch.no_grad()  # sampling only: the solvers themselves are differentiable
def draw(
    denoiser: Denoise,
    process: Process,
    solve: Callable[..., Tensor],
    grid: Tensor,
    *,
    shape: tuple[int, ...],
    cycle: tuple[int, ...],
    seed: int,
    n: int,
    first: int = 0,
    batch: int = 500,
    where: torch.device,
    **own: Any,
) -> Iterator[Tensor]:
    """Yields samples `first` to `first + n` in batches: float32 on the CPU, (<= batch, *shape).

    `grid` holds process times and starts at the noisiest; the first state is sigma(grid[0]) times unit noise. `own`
    goes to the solver.
    """
    for start in range(first, first + n, batch):
        count = min(batch, first + n - start)
        x = starts(seed, start, count, shape).to(where) * process.sigma(grid[0]).to(where, torch.float32)
        cond = labels(start, count, cycle)
        gen = rng.generator(seed, "solver", start, device=where)
        yield solve(denoiser, process, x, grid, gen, cond=None if cond is None else cond.to(where), **own).float().cpu()
