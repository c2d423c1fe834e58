"""DPM-Solver++(2M), the second-order multistep solver as published (Lu et al. 2022, arXiv:2211.01095, algorithm 2)."""

from __future__ import annotations

from torch import Tensor

from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process
from gentk.solvers import Noise, Trace, dpmpp_2m_sde, multistep
from gentk.solvers.multistep import Nodes, Step

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
    """Exponential Euler on the evaluations carried half a step ahead; first order at the start and to sigma = 0."""
    return multistep.run(denoiser, x, grid, plan(Nodes.of(process, grid)), noise, cond=cond, trace=trace)


def plan(nodes: Nodes, *, past: int = 0) -> list[Step]:
    """The coefficients of every step, with r the last step's length in units of this one:

        x_u = sigma_u / sigma_t x_t + alpha_u (1 - e^-h) (D_0 + (D_0 - D_1) / (2 r))

    which is the SDE solver's midpoint form without noise. `past`: how many of the first nodes are history.
    """
    return dpmpp_2m_sde.plan(nodes, eta=0.0, form="midpoint", past=past)
