"""EDM's stochastic sampler: churn, then Heun's step in the noise level (Karras et al. 2022, arXiv:2206.00364, alg. 2).

symbol          here         meaning
x               y            the sample in variance-exploding coordinates, x_t / alpha_t
t_i             s            noise-to-signal ratio sigma / alpha
t_i-hat         s_hat        the level that the churn raises it to
S_churn, ..     s_churn, ..  the paper's settings, its s for ours
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process
from gentk.solvers import Noise, Trace
from gentk.solvers.multistep import Nodes

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
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Noise put in to raise the level by 1 + min(s_churn / steps, sqrt(2) - 1), then Heun's step down; Euler's to 0.

    The level is raised where s_min <= s <= s_max only; s_noise scales the noise put in. s_churn = 0 is algorithm 1 and
    draws no noise. Any process is sampled in x / alpha; from alpha = 0, where s = inf, Euler's step without churn. Two
    calls of the denoiser a step, one where the step is Euler's.
    Raises RecipeError for settings out of range, and for a churn above the largest level of the process.
    """
    if not (s_churn >= 0 and 0 <= s_min <= s_max and s_noise > 0):
        raise RecipeError(
            f"edm-stochastic: s_churn {s_churn:g}, s_min {s_min:g}, s_max {s_max:g}, s_noise {s_noise:g}",
            hint="s_churn >= 0, 0 <= s_min <= s_max, s_noise > 0",
        )
    nodes = Nodes.of(process, grid)
    s = [b / a if a else math.inf for a, b in zip(nodes.alpha, nodes.sigma, strict=True)]
    gamma = min(s_churn / nodes.steps, math.sqrt(2) - 1)

    def evaluate(y: Tensor, t: Tensor) -> Tensor:
        return denoiser(y * float(process.alpha(t)), t, cond)

    if trace:
        trace(grid[0], x)
    y = x / nodes.alpha[0] if nodes.alpha[0] else x
    for i, (t, u) in enumerate(pairwise(grid)):
        if math.isinf(s[i]):  # Euler's step in s as s -> inf, where y / s is x / sigma
            y = denoiser(x, t, cond) + x * (s[i + 1] / nodes.sigma[i])
        else:
            s_hat = s[i]
            if gamma and s_min <= s[i] <= s_max:
                s_hat = s[i] * (1 + gamma)
                t = _time(process, s_hat)
                y = y + noise(y) * (s_noise * math.sqrt(s_hat**2 - s[i] ** 2))
            x0 = evaluate(y, t)
            if s[i + 1] == 0:  # Euler's step, without its rounding
                y = x0
            else:
                d = (y - x0) / s_hat
                ahead = y + d * (s[i + 1] - s_hat)
                y = y + (d + (ahead - evaluate(ahead, u)) / s[i + 1]) * (0.5 * (s[i + 1] - s_hat))
        x = y * nodes.alpha[i + 1]
        if trace:
            trace(u, x)
    return x


def _time(process: Process, s: float) -> Tensor:
    t = process.t_of(torch.tensor(s, dtype=torch.float64))
    if float(t) > process.t_max * (1 + 1e-9):  # room for rounding only
        raise RecipeError(
            f"edm-stochastic: the churn raises the noise level to {s:g}, above the largest of process `{process.name}`",
            hint="lower s_max below the first level of the grid, or s_churn",
        )
    return t
