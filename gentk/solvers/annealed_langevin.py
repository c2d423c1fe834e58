"""Annealed Langevin: unadjusted chains down a ladder of noise levels, each level's step in proportion to its variance.

Song and Ermon 2019 (arXiv:1907.05600), here with the score of a time-dependent energy, as Gao et al. 2021
(arXiv:2012.08125) draw. At level t a step has variance a t^2: on noise of that level it forgets with rate a / 2, and
its stationary variance is t^2 / (1 - a / 4), so a = 0.15 leaves 4 % too much. The last state still carries the noise of
the smallest level; `clean` takes it away by Tweedie's x + t^2 score.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.solvers import Noise

Score = Callable[[Tensor, float], Tensor]
"""(x (n, ...), t) -> the score of data noised to t, (n, ...)."""


def run(
    score: Score,
    x: Tensor,
    levels: list[float],
    noise: Noise,
    *,
    steps: int,
    step_size: float = 0.15,
    clean: bool = True,
    each: Callable[[int], None] | None = None,
) -> Tensor:
    """x (n, ...), noise of the first level, through `steps` steps at each of the decreasing `levels` -> (n, ...).

    `each(i)` is called after step i, from 1 on. One score for each step, one more for `clean`; a step whose state is
    not finite is not taken by that chain. Raises RecipeError for settings outside their range.
    """
    _check(levels, steps, step_size)
    done = 0
    for t in levels:
        a = step_size * t**2
        for _ in range(steps):
            new = torch.add(x, score(x, t), alpha=a / 2).add_(noise(x), alpha=math.sqrt(a))
            fine = new.reshape(len(x), -1).isfinite().all(1).reshape(-1, *(1,) * (x.dim() - 1))
            x = torch.where(fine, new, x)
            done += 1
            if each:
                each(done)
    return torch.add(x, score(x, levels[-1]), alpha=levels[-1] ** 2) if clean else x


def _check(levels: list[float], steps: int, step_size: float) -> None:
    if not levels or any(b >= a for a, b in itertools.pairwise(levels)) or levels[-1] <= 0:
        raise RecipeError(f"levels: {levels}", hint="noise levels above 0, from the largest down")
    if steps < 1:
        raise RecipeError(f"steps: {steps}", hint="at least 1 step at each level")
    if not 0 < step_size < 4:
        raise RecipeError(f"step_size: {step_size}", hint="between 0 and 4, where chains diverge on noise alone")
