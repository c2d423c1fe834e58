"""Solvers: one algorithm per file, each a pure function

    solve(denoiser, process, x, grid, noise, *, cond=None, trace=None, **own) -> x at the end of the grid

denoiser  any callable (x, t, cond) -> x0
x         (B, ...), a sample of the process at time grid[0], for instance sigma(grid[0]) times standard normal noise
grid      (n + 1,) process times, float64 on the CPU, decreasing (`gentk.processes.grids.to_times`); ends at 0 for a
          clean sample
noise     noise(x) -> standard normal of x's shape, new at every call: the solver's own noise. Deterministic solvers
          never call it
trace     called as trace(t, x) at every grid point, the first included
own       the solver's settings, named as in its recipe

`ORDER` is the order of the global error in the step for the default settings without noise. Coefficients are Python
floats, made for the whole grid before the first call; tensors see them only as factors, in their own dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gentk.processes import rows
from gentk.processes.process import Process

Trace = Callable[[Tensor, Tensor], None]
Noise = Callable[[Tensor], Tensor]


def drawn(gen: torch.Generator) -> Noise:
    """The noise of one generator for the whole batch."""
    return lambda x: rows.randn(x.shape, gen, device=gen.device, dtype=x.dtype).to(x.device)


def evaluations(solve: Callable[..., Tensor], process: Process, grid: Tensor, **own: Any) -> int:
    """How often a solver calls the denoiser on a grid: counted, by solving for one number that is always 0."""
    return len(called_at(solve, process, grid, **own))


def called_at(solve: Callable[..., Tensor], process: Process, grid: Tensor, **own: Any) -> list[Tensor]:
    """The times at which a solver calls the denoiser on a grid, in order."""
    times: list[Tensor] = []

    def denoiser(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        times.append(t)
        return torch.zeros_like(x)

    solve(denoiser, process, torch.zeros(1, 1, dtype=torch.float64), grid, torch.zeros_like, **own)
    return times
