"""Heun's second-order method for the probability-flow ODE (Karras et al. 2022, arXiv:2206.00364, algorithm 1)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process, from_x0
from gentk.solvers import Noise, Trace

ORDER = 2


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
    """Euler's step, then the mean of the velocities at its two ends; a step to t = 0 ends on the denoiser's output.

    Works in process time, where the velocity of `ve`, `cosine` and `rectified-flow` is smooth up to the ends.
    """
    if trace:
        trace(grid[0], x)
    for t, u in pairwise(grid):
        x0 = denoiser(x, t, cond)
        if u == 0:  # no velocity at t = 0 to correct with
            x = x0
        else:
            h = (u - t).to(x.dtype)
            v = from_x0("velocity", process, x, t, x0)
            y = x + h * v
            x = x + 0.5 * h * (v + from_x0("velocity", process, y, u, denoiser(y, u, cond)))
        if trace:
            trace(u, x)
    return x
