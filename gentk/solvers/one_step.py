"""One call of the denoiser at the first level of the grid: how a distilled generator is sampled."""

from __future__ import annotations

from torch import Tensor

from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process
from gentk.solvers import Noise, Trace

ORDER = 0


def solve(
    denoiser: Denoise,
    process: Process,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    *,
    cond: Tensor | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """D(x, grid[0]); the rest of the grid is not used but for the time that `trace` reports."""
    if trace:
        trace(grid[0], x)
    x = denoiser(x, grid[0], cond)
    if trace:
        trace(grid[-1], x)
    return x
