"""SA-Solver: stochastic Adams predictor-corrector in data prediction (arXiv:2309.05019).

    symbol      here                meaning
    tau         `tau`               strength of the reverse SDE: 0 is the probability-flow ODE, 1 the usual reverse SDE
    p           `predictor`         evaluations in the predictor (s-step Adams-Bashforth: p = s)
    c           `corrector`         evaluations in the corrector, the new one included (s-step Adams-Moulton: c = s + 1)
    M_k, b_j    `exponential`       the weights of one step

Any tau keeps the marginals of the process; it changes the samples, and how errors made earlier die out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from gentk.errors import RecipeError
from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process
from gentk.solvers import Noise, Trace, multistep
from gentk.solvers.exponential import decay, moments, spread, weights
from gentk.solvers.multistep import FINAL, Nodes, Step, Update

ORDER = 2  # for the fall to first order at the end; without (`lower_final`) the greater of predictor and corrector

Tau = float | Sequence[Sequence[float]]
"""A constant, or (value, lowest, highest) triples: that value for sigma / alpha in [lowest, highest], else 0."""


def solve(
    denoiser: Denoise,
    process: Process,
    x: Tensor,
    grid: Tensor,
    noise: Noise,
    *,
    cond: Tensor | None = None,
    trace: Trace | None = None,
    predictor: int = 3,
    corrector: int = 4,
    evaluate: Literal["pec", "pece"] = "pec",
    tau: Tau = 0.0,
    tau_at: Literal["end", "start"] = "end",
    mode: Literal["few", "more"] = "few",
    rescale: bool | None = None,
    lower_final: bool = True,
) -> Tensor:
    """Adams-Bashforth, an evaluation, Adams-Moulton with the same noise; the settings are those of `plan`."""
    steps = plan(
        Nodes.of(process, grid),
        predictor=predictor,
        corrector=corrector,
        evaluate=evaluate,
        tau=tau,
        tau_at=tau_at,
        mode=mode,
        rescale=rescale,
        lower_final=lower_final,
    )
    return multistep.run(denoiser, x, grid, steps, noise, cond=cond, trace=trace)


def plan(
    nodes: Nodes,
    *,
    predictor: int = 3,
    corrector: int = 4,
    evaluate: Literal["pec", "pece"] = "pec",
    tau: Tau = 0.0,
    tau_at: Literal["end", "start"] = "end",
    mode: Literal["few", "more"] = "few",
    rescale: bool | None = None,
    lower_final: bool = True,
    past: int = 0,
) -> list[Step]:
    """The coefficients of every step.

    predictor    1 to 4; corrector 0 (none) to 4. Fewer while the history is short.
    tau, tau_at  `Tau`; read at the step's end, as the authors' code does, or at its start, as diffusers does
    mode         the authors' two: `few` leaves the last step uncorrected and without noise; `more` corrects every step,
                 and before a step to 0 evaluates once more at the corrected point (their "denoise to zero")
    rescale      second-order weights of the paper's appendix D, O(h^3) from the exact ones; None: as `mode` has it
    lower_final  the authors' fall to first order towards the end, without which few-step samples are noisy; it caps
                 the order of convergence at 2
    past         how many of the first nodes are history: the plan begins at node `past`

    Raises RecipeError for orders or a tau outside their range.
    """
    if not (1 <= predictor <= 4 and 0 <= corrector <= 4):
        raise RecipeError(
            f"sa-solver: predictor {predictor}, corrector {corrector}: orders are 1 to 4, corrector 0: none"
        )
    table = _table(tau)
    rescale = mode == "few" if rescale is None else rescale
    last = nodes.steps  # index of the node that counts as the end
    if mode == "more" and nodes.to_zero:
        last -= 1
    steps = []
    for i in range(past, nodes.steps):
        end = i + 1
        if math.isinf(nodes.lam[end]):
            steps.append(FINAL)
            continue
        of_tau = _at(table, nodes.lam[end if tau_at == "end" else i])
        closing = mode == "few" and end == last
        if closing:
            of_tau = 0.0
        left = last - end + 1 if lower_final else 4
        p = min(predictor, nodes.behind(i), left)
        p = 1 if math.isinf(nodes.lam[i]) else p
        c = 0 if closing else min(corrector, nodes.behind(i) + 1, left + 1)
        correct = _update(nodes, i, of_tau, range(end, end - c, -1), rescale=rescale) if c else None
        again = correct is not None and end < nodes.steps and (end == last or (evaluate == "pece" and end < last))
        steps.append(
            Step(
                _update(nodes, i, of_tau, range(i, i - p, -1), rescale=rescale),
                correct,
                evaluate=not closing,
                again=again,
            )
        )
    return steps


def _table(tau: Tau) -> list[tuple[float, float, float]]:
    """(value, lowest lambda, highest lambda) of every piece. Raises RecipeError for negative values or empty ranges."""
    pieces = [(tau, 0.0, math.inf)] if isinstance(tau, int | float) else [tuple(piece) for piece in tau]
    for piece in pieces:
        if len(piece) != 3 or not (piece[0] >= 0 and 0 <= piece[1] < piece[2]):
            raise RecipeError(
                f"tau: {list(piece)}", hint="a value >= 0, or a list of [value, lowest sigma, highest sigma]"
            )
    # Grids are made by roots and powers: a bound that is meant to be a grid point shall hold it despite their rounding.
    return [(v, -math.log(hi * (1 + 1e-9)), -math.log(lo * (1 - 1e-9)) if lo else math.inf) for v, lo, hi in pieces]


def _at(table: list[tuple[float, float, float]], lam: float) -> float:
    return next((value for value, lowest, highest in table if lowest <= lam <= highest), 0.0)


def _update(nodes: Nodes, i: int, tau: float, at: range, *, rescale: bool) -> Update:
    """The step from node i to i + 1 by the evaluations at nodes `at`, newest first."""
    alpha, h = nodes.alpha[i + 1], nodes.step(i)
    scale = nodes.sigma[i + 1] / nodes.sigma[i] * decay(h, tau)
    if math.isinf(h):  # from alpha = 0: of a polynomial in lambda only its value is left
        v: list[float] = [0.0]
        at = at[:1]
    else:
        v = [(nodes.lam[i + 1] - nodes.lam[j]) / h for j in at]
    if rescale and len(v) == 2:
        z = (1 + tau**2) * h
        # alpha z / 2 is the leading term of both second weights: of the predictor's, -alpha z / (2 (v_old - 1)), and of
        # the corrector's, alpha z / 2 on the new evaluation
        total = alpha * moments(z, 1)[0]
        new = alpha * z / 2
        first = new if v[0] == 0 else total + new / (v[1] - 1)
        b: tuple[float, ...] = (first, total - first)
    else:
        b = weights(alpha, h, tau, v)
    return Update(scale, b, nodes.sigma[i + 1] * spread(h, tau))
