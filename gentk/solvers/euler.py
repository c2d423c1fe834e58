"""Euler's method for the probability-flow ODE (Song et al. 2021, arXiv:2011.13456, eq. 13), in process time."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process, from_x0
from gentk.solvers import Noise, Trace

ORDER = 1


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
    """x_{i+1} = x_i + (t_{i+1} - t_i) v(x_i, t_i); a step to t = 0 ends on the denoiser's output.

    That end is Euler's step in t for `ve` and `rectified-flow`, and in the noise-to-signal ratio for every process; in
    `vp`'s own time d sigma / dt is infinite at 0 and the plain step would leave half of the noise in.
    """
    if trace:
        trace(grid[0], x)
    for t, u in pairwise(grid):
        x0 = denoiser(x, t, cond)
        x = x0 if u == 0 else x + (u - t).to(x.dtype) * from_x0("velocity", process, x, t, x0)
        if trace:
            trace(u, x)
    return x
