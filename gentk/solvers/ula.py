"""Unadjusted Langevin algorithm: Euler-Maruyama on dX = 1/2 grad log p dt + dW (Roberts and Tweedie 1996).

`step_size` e is the variance of the noise: y = x + e/2 grad log p(x) + sqrt(e) xi. Nothing corrects for the length of
the step: the stationary law is off by O(e), on N(0, s^2) its variance is s^2 / (1 - e / (4 s^2)), and from e = 4 s^2 on
there is none.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gentk.solvers import Noise
from gentk.solvers.chains import LogProb, State, at, choose, finite

TARGET_ACCEPT = None  # every proposal is taken: there is nothing to adapt to


def step(state: State, log_prob: LogProb, step_size: float, noise: Noise) -> tuple[State, Tensor]:
    """One transition: one noise call, one gradient. log_accept (n,) is 0; -inf where y is not finite and x is kept."""
    new = at(log_prob, propose(state, step_size, noise(state.x)))
    taken = finite(new)
    return choose(taken, new, state), torch.zeros_like(new.log_prob).masked_fill(~taken, -math.inf)


def propose(state: State, step_size: float, xi: Tensor) -> Tensor:
    """y (n, ...) from standard normal xi (n, ...)."""
    return torch.add(state.x, state.grad, alpha=step_size / 2).add_(xi, alpha=math.sqrt(step_size))
