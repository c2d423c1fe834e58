"""DDIM, and its family of noisy samplers up to ancestral sampling (Song et al. 2021, arXiv:2010.02502)."""

from __future__ import annotations

import math

from torch import Tensor

from gentk.errors import RecipeError
from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process
from gentk.solvers import Noise, Trace, multistep
from gentk.solvers.multistep import FINAL, Nodes, Step, Update

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
    eta: float = 0.0,
) -> Tensor:
    """Back to x0, then noised to the next level, with part `eta` of the noise new (`plan`); `eta` 0 draws none."""
    return multistep.run(denoiser, x, grid, plan(Nodes.of(process, grid), eta=eta), noise, cond=cond, trace=trace)


def plan(nodes: Nodes, *, eta: float = 0.0) -> list[Step]:
    """The coefficients of every step (the paper's equations 12 and 16, in h):

        x_u = alpha_u D + sigma_u (sqrt(1 - n^2) eps + n xi),    eps = (x_t - alpha_t D) / sigma_t
        n^2 = eta^2 (1 - e^(-2h))

    eta 0 is the probability-flow ODE by exponential Euler, 1 is DDPM with the posterior's variance. Raises RecipeError
    for an eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise RecipeError(f"eta: {eta:g}", hint="0 (no noise) to 1 (ancestral sampling)")
    return [_step(nodes, i, eta) for i in range(nodes.steps)]


def _step(nodes: Nodes, i: int, eta: float) -> Step:
    u, h = i + 1, nodes.step(i)
    if math.isinf(nodes.lam[u]):
        return FINAL
    new = eta * math.sqrt(-math.expm1(-2 * h))
    old = math.sqrt(1 - new**2)
    # sigma_u alpha_t / sigma_t, eps's share of D, is alpha_u e^-h: 0 from alpha = 0, where D says all there is
    update = Update(
        nodes.sigma[u] / nodes.sigma[i] * old, (nodes.alpha[u] * (1 - old * math.exp(-h)),), nodes.sigma[u] * new
    )
    return Step(update, evaluate=u < nodes.steps)
