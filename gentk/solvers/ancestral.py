"""Ancestral sampling: the denoiser's x0 put into the exact posterior of each step (DDPM, arXiv:2006.11239)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process
from gentk.solvers import Noise, Trace, multistep
from gentk.solvers.multistep import FINAL, Nodes, Step, Update

ORDER = 1

Variance = Literal["small", "large"]


def solve(
    denoiser: Denoise,
    process: Process,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    *,
    cond: Tensor | None = None,
    trace: Trace | None = None,
    variance: Variance = "small",
) -> Tensor:
    """One draw of p(x_u | x_t, x0 = D) a step, none at sigma = 0 (`plan`)."""
    steps = plan(Nodes.of(process, grid), variance=variance)
    return multistep.run(denoiser, x, grid, steps, noise, cond=cond, trace=trace)


def plan(nodes: Nodes, *, variance: Variance = "small") -> list[Step]:
    """The coefficients of every step (the paper's equation 7 and section 3.2, in h):

    x_u = sigma_u / sigma_t e^-h x_t + alpha_u (1 - e^(-2h)) D + noise xi
    noise^2 = (1 - e^(-2h)) sigma_u^2    `small`: the posterior's variance, right for data in one point
              (1 - e^(-2h)) sigma_t^2    `large`: beta_t, right for normal data; a step much longer than DDPM's
                                         leaves noise of the old level in
    """
    return [_step(nodes, i, variance) for i in range(nodes.steps)]


def _step(nodes: Nodes, i: int, variance: Variance) -> Step:
    u, h = i + 1, nodes.step(i)
    if math.isinf(nodes.lam[u]):
        return FINAL
    fresh = -math.expm1(-2 * h)
    level = {"small": nodes.sigma[u], "large": nodes.sigma[i]}[variance]
    update = Update(nodes.sigma[u] / nodes.sigma[i] * math.exp(-h), (nodes.alpha[u] * fresh,), level * math.sqrt(fresh))
    return Step(update, evaluate=u < nodes.steps)
