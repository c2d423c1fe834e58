"""DPM-Solver++(3M), the third-order multistep solver (arXiv:2211.01095), as published and with its factor of 2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process
from gentk.solvers import Noise, Trace, multistep
from gentk.solvers.exponential import moments, weights
from gentk.solvers.multistep import FINAL, Nodes, Step, Update

ORDER = 2  # the first step is of first order; where the history is given it is 3 for `corrected`

FEW = 15
"""`lower_final` acts below this many steps, as in diffusers; the authors' own code has 10."""

Form = Literal["corrected", "published"]


def solve(
    denoiser: Denoise,
    process: Process,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    *,
    cond: Tensor | None = None,
    trace: Trace | None = None,
    form: Form = "corrected",
    lower_final: bool = True,
) -> Tensor:
    """Three evaluations a step, one and two at the start (`plan`)."""
    steps = plan(Nodes.of(process, grid), form=form, lower_final=lower_final)
    return multistep.run(denoiser, x, grid, steps, noise, cond=cond, trace=trace)


def plan(nodes: Nodes, *, form: Form = "corrected", lower_final: bool = True, past: int = 0) -> list[Step]:
    """The coefficients of every step.

    form         `corrected`: the integral of the parabola through the evaluations. `published`: the authors' file and
                 those after it, which halve the parabola's second difference, and on steps with two evaluations take
                 the midpoint form of (2M); it converges with order 2
    lower_final  fewer than `FEW` steps end with two evaluations on the last but one and one on the last
    past         how many of the first nodes are history: the plan begins at node `past`
    """
    steps = []
    few = lower_final and nodes.steps - past < FEW
    for i in range(past, nodes.steps):
        u, h = i + 1, nodes.step(i)
        if math.isinf(nodes.lam[u]):
            steps.append(FINAL)
            continue
        order = max(1, min(3, nodes.behind(i), nodes.steps - i if few else 3))
        v = [1.0, *((nodes.lam[u] - nodes.lam[j]) / h for j in range(i - 1, i - order, -1))]
        b = {"corrected": _corrected, "published": _published}[form](nodes.alpha[u], h, v)
        steps.append(Step(Update(nodes.sigma[u] / nodes.sigma[i], b), evaluate=u < nodes.steps))
    return steps


def _corrected(alpha: float, h: float, v: Sequence[float]) -> tuple[float, ...]:
    return weights(alpha, h, 0.0, v)


def _published(alpha: float, h: float, v: Sequence[float]) -> tuple[float, ...]:
    """The published weights: `_corrected`'s less what the missing factor takes away."""
    b = weights(alpha, h, 0.0, v)
    if len(v) == 1:
        return b
    m0, m1, m2 = moments(h, 3)
    if len(v) == 2:
        lean = alpha * m0 / (2 * (v[1] - 1))
        return (alpha * m0 + lean, -lean)
    # With D(v) = D_0 + (1 - v) D1 + (1 - v)^2 D2 the exact term is alpha (M_0 - 2 M_1 + M_2) D2 = -2 alpha phi_3 D2,
    # D2 the second divided difference; published is -alpha phi_3 D2.
    half = alpha * (m0 - 2 * m1 + m2) / 2
    _, v1, v2 = v
    divided = (1 / ((v1 - 1) * (v2 - 1)), -1 / ((v1 - 1) * (v2 - v1)), 1 / ((v2 - 1) * (v2 - v1)))
    return tuple(exact - half * d for exact, d in zip(b, divided, strict=True))
