"""What linear multistep solvers share: the nodes of a grid, the linear update, and the loop that applies a plan.

Every such solver is a list of updates

    x_u = scale x_t + sum_j weights[j] D_j + noise xi,     D_0 the newest evaluation

whose coefficients follow from the grid alone. A solver's file computes them (`plan`); this file runs them. They are
derived in variance-exploding coordinates x / alpha, in terms of

    s = sigma / alpha          noise-to-signal ratio (EDM's sigma)
    lambda = -ln s             grows from noise to data
    h = lambda_u - lambda_t    the step

and carried back to the process by sigma_u / sigma_t on x and alpha_u on the evaluations, so that nothing is divided by
alpha: a grid may start where alpha = 0 (s = inf) and end where sigma = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from gentk.errors import RecipeError
from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process
from gentk.solvers import Noise, Trace


@dataclass(frozen=True)
class Nodes:
    """alpha, sigma and lambda at every point of a grid, as floats; lambda is -inf at alpha = 0, inf at sigma = 0."""

    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    lam: tuple[float, ...]

    @classmethod
    def of(cls, process: Process, grid: Tensor) -> Nodes:
        """The nodes of process times (n + 1,). Raises RecipeError unless the noise decreases at every step."""
        grid = grid.detach().double().cpu()
        alpha, sigma = process.alpha(grid).tolist(), process.sigma(grid).tolist()
        lam = [
            -math.inf if a <= 0 else math.inf if s <= 0 else math.log(a) - math.log(s)
            for a, s in zip(alpha, sigma, strict=True)
        ]
        if len(lam) < 2 or not all(a < b for a, b in pairwise(lam)):
            shown = ", ".join(f"{math.exp(-v):.4g}" for v in lam)
            raise RecipeError(f"grid: the noise levels {shown} do not decrease", hint="list them from noisy to clean")
        return cls(tuple(alpha), tuple(sigma), tuple(lam))

    @property
    def steps(self) -> int:
        """How many steps the grid has."""
        return len(self.lam) - 1

    @property
    def to_zero(self) -> bool:
        """Whether the last step goes to sigma = 0, where every solver ends on the denoiser's output."""
        return math.isinf(self.lam[-1])

    def step(self, i: int) -> float:
        """h of the step from node i to i + 1; inf from alpha = 0 and to sigma = 0."""
        return self.lam[i + 1] - self.lam[i]

    def behind(self, i: int) -> int:
        """How many evaluations up to node i can stand in one polynomial in lambda: those at finite lambda."""
        return i + 1 - math.isinf(self.lam[0])


@dataclass(frozen=True)
class Update:
    """x_u = scale x_t + sum_j weights[j] D_j + noise xi, with D_0 the newest evaluation; see the head of the file."""

    scale: float
    weights: tuple[float, ...]
    noise: float = 0.0

    def __call__(self, x: Tensor, evaluations: Sequence[Tensor], xi: Tensor | None) -> Tensor:
        """The update of x (B, ...) with the newest evaluation first; xi is needed where `noise` is not 0."""
        out = x * self.scale
        for weight, d in zip(self.weights, evaluations, strict=False):
            out = out.add_(d, alpha=weight)
        if self.noise:
            assert xi is not None
            out = out.add_(xi, alpha=self.noise)
        return out


@dataclass(frozen=True)
class Step:
    """One step of a plan: predict, evaluate, and with a corrector take the step again by the new evaluation too.

    `evaluate`: whether the denoiser is called at the prediction. `again`: whether it is called at the corrected point
    too and that value kept instead (PECE).
    """

    predictor: Update
    corrector: Update | None = None
    evaluate: bool = True
    again: bool = False


FINAL = Step(Update(0.0, (1.0,)), evaluate=False)
"""The step to sigma = 0, where alpha = 1: what the denoiser says."""


def calls(plan: Sequence[Step]) -> int:
    """Denoiser calls of a plan: the one at the start, and those of its steps."""
    return 1 + sum(step.evaluate + step.again for step in plan)


def run(
    denoiser: Denoise,
    x: Tensor,
    grid: Tensor,
    plan: Sequence[Step],
    noise: Noise,
    *,
    cond: Tensor | None = None,
    trace: Trace | None = None,
    past: Sequence[Tensor] = (),
) -> Tensor:
    """Applies a plan for `grid` to x (B, ...) at grid[0]; keeps no more evaluations than the plan looks back on.

    A predictor and its corrector see the same noise: fresh noise in the corrector would lower the weak order to one.
    `past` holds evaluations at nodes before grid[0], newest first, for plans that were made with these nodes.
    """
    depth = max(len(u.weights) for step in plan for u in (step.predictor, step.corrector) if u)
    evaluations = [denoiser(x, grid[0], cond), *past]
    if trace:
        trace(grid[0], x)
    for u, step in zip(grid[1:], plan, strict=True):
        noisy = step.predictor.noise or (step.corrector and step.corrector.noise)
        xi = noise(x) if noisy else None
        start, x = x, step.predictor(x, evaluations, xi)
        if step.evaluate:
            evaluations = [denoiser(x, u, cond), *evaluations[: depth - 1]]
            if step.corrector:
                x = step.corrector(start, evaluations, xi)
                if step.again:
                    evaluations[0] = denoiser(x, u, cond)
        if trace:
            trace(u, x)
    return x
