"""SDE-DPM-Solver++(2M): DPM-Solver++(2M) for the reverse SDE (arXiv:2211.01095), with k-diffusion's `eta`."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from gentk.errors import RecipeError
from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process
from gentk.solvers import Noise, Trace, multistep
from gentk.solvers.exponential import decay, moments, spread
from gentk.solvers.multistep import FINAL, Nodes, Step, Update

ORDER = 2

Form = Literal["midpoint", "heun"]


def solve(
    denoiser: Denoise,
    process: Process,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    *,
    cond: Tensor | None = None,
    trace: Trace | None = None,
    eta: float = 1.0,
    form: Form = "midpoint",
) -> Tensor:
    """Two evaluations a step, one on the first; no noise on the step to sigma = 0 (`plan`)."""
    steps = plan(Nodes.of(process, grid), eta=eta, form=form)
    return multistep.run(denoiser, x, grid, steps, noise, cond=cond, trace=trace)


def plan(nodes: Nodes, *, eta: float = 1.0, form: Form = "midpoint", past: int = 0) -> list[Step]:
    """The coefficients of every step, with z = (1 + eta) h and r the last step's length in units of this one:

        x_u = sigma_u / sigma_t e^(-eta h) x_t + alpha_u ((1 - e^-z) D_0 + w (D_0 - D_1) / r)
              + sigma_u sqrt(1 - e^(-2 eta h)) xi
        w = (1 - e^-z) / 2        midpoint
            1 - (1 - e^-z) / z    heun: the exact integral of the line through D_0 and D_1

    eta is the square of SA-Solver's tau: 0 the probability-flow ODE, 1 the usual reverse SDE. `past`: how many of the
    first nodes are history. Raises RecipeError for a negative eta.
    """
    if not eta >= 0:
        raise RecipeError(f"eta: {eta:g}", hint="0 (no noise) or more")
    return [_step(nodes, i, eta, form) for i in range(past, nodes.steps)]


def _step(nodes: Nodes, i: int, eta: float, form: Form) -> Step:
    u, h, tau = i + 1, nodes.step(i), math.sqrt(eta)
    if math.isinf(nodes.lam[u]):
        return FINAL
    z = (1 + eta) * h
    b = [-nodes.alpha[u] * math.expm1(-z)]
    if nodes.behind(i) > 1:
        m0, m1 = moments(z, 2)
        lean = nodes.alpha[u] * {"midpoint": m0 / 2, "heun": m0 - m1}[form] * h / nodes.step(i - 1)
        b = [b[0] + lean, -lean]
    update = Update(nodes.sigma[u] / nodes.sigma[i] * decay(h, tau), tuple(b), noise=nodes.sigma[u] * spread(h, tau))
    return Step(update, evaluate=u < nodes.steps)
