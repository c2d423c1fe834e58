"""UniPC: predictor UniP-p, corrector UniC-p, in data prediction (Zhao et al. 2023, arXiv:2302.04867).

The paper's step is x_u = sigma_u / sigma_t x_t + alpha_u ((1 - e^-h) D_0 - B(h) sum_k rho_k (D_k - D_0) / r_k) with
r_k = (lambda_k - lambda_t) / h, where rho solves R rho = b / B(h). B(h) cancels wherever that system is solved, and the
exact integrals of `exponential` are left. It stays where the authors put rho = 1/2 instead of solving: with two
evaluations, in the predictor or the corrector. There, and only there, `bh1` (B = -h) and `bh2` (B = e^-h - 1) differ.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from gentk.errors import RecipeError
from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process
from gentk.solvers import Noise, Trace, multistep
from gentk.solvers.exponential import weights
from gentk.solvers.multistep import FINAL, Nodes, Step, Update

ORDER = 2  # the last steps fall back to first order; with history and without `lower_final` it is `order` + 1

Variant = Literal["bh1", "bh2"]


def solve(
    denoiser: Denoise,
    process: Process,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    *,
    cond: Tensor | None = None,
    trace: Trace | None = None,
    order: int = 3,
    variant: Variant = "bh1",
    corrector: bool = True,
    lower_final: bool = True,
) -> Tensor:
    """Predict, evaluate, take the step again with the new evaluation; the last step is only predicted (`plan`).

    One call of the denoiser a step: the corrector uses the one that the next step needs anyway.
    """
    steps = plan(Nodes.of(process, grid), order=order, variant=variant, corrector=corrector, lower_final=lower_final)
    return multistep.run(denoiser, x, grid, steps, noise, cond=cond, trace=trace)


def plan(
    nodes: Nodes,
    *,
    order: int = 3,
    variant: Variant = "bh1",
    corrector: bool = True,
    lower_final: bool = True,
    past: int = 0,
) -> list[Step]:
    """The coefficients of every step.

    order        p, 1 to 3: evaluations in the predictor; the corrector has one more. Fewer while the history is short
    variant      the rule of steps with two evaluations; `bh2` is the safer one where h is large, as B stays below 1
    corrector    False leaves UniP-p alone, of order p instead of p + 1
    lower_final  the last steps have p = .., 2, 1, the step to sigma = 0 counted
    past         how many of the first nodes are history: the plan begins at node `past`

    Raises RecipeError for another order.
    """
    if order not in (1, 2, 3):
        raise RecipeError(f"unipc: order {order}", hint="1, 2 or 3")
    steps = []
    for i in range(past, nodes.steps):
        u = i + 1
        if math.isinf(nodes.lam[u]):
            steps.append(FINAL)
            continue
        p = min(order, nodes.behind(i), nodes.steps - i if lower_final else order)
        steps.append(
            Step(
                _update(nodes, i, range(i, i - max(p, 1), -1), variant),
                _update(nodes, i, range(u, i - p, -1), variant) if corrector and u < nodes.steps else None,
                evaluate=u < nodes.steps,
            )
        )
    return steps


def _update(nodes: Nodes, i: int, at: range, variant: Variant) -> Update:
    """The step from node i to i + 1 by the evaluations at nodes `at`, newest first; from alpha = 0 `at` is one node."""
    alpha, h = nodes.alpha[i + 1], nodes.step(i)
    b: tuple[float, ...]
    if len(at) == 2:  # at the start, v = 1, and at one other node, v_j: r_j = 1 - v_j and rho = 1/2
        total = -alpha * math.expm1(-h)
        by = {"bh1": alpha * h, "bh2": total}[variant] / 2  # -alpha B(h) / 2
        b = (by, total - by) if at[0] > i else (total + by * h / nodes.step(i - 1), -by * h / nodes.step(i - 1))
    else:
        b = weights(alpha, h, 0.0, [1.0] if len(at) == 1 else [(nodes.lam[i + 1] - nodes.lam[j]) / h for j in at])
    return Update(nodes.sigma[i + 1] / nodes.sigma[i], b)
