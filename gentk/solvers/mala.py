"""Metropolis-adjusted Langevin algorithm: ULA's proposal, accepted or not (Roberts and Tweedie 1996).

`step_size` e is the variance of the proposal's noise. The proposal is not symmetric: with the mean m(x) = x + e/2 g(x),

    log q(x|y) - log q(y|x) = (|y - m(x)|^2 - |x - m(y)|^2) / 2e = -<s, xi + s/2>,    s = sqrt(e)/2 (g(x) + g(y))

where the right side, unlike the left, is not a difference of large numbers. It is HMC with one step of length sqrt(e).
"""

from __future__ import annotations

import math

from torch import Tensor

from gentk.solvers import Noise
from gentk.solvers.chains import LogProb, State, at, inner, metropolis
from gentk.solvers.ula import propose

TARGET_ACCEPT = 0.574  # optimal in high dimension: Roberts and Rosenthal (1998)


def step(state: State, log_prob: LogProb, step_size: float, noise: Noise) -> tuple[State, Tensor]:
    """One transition: noise for the proposal (n, ...), then for the acceptance (n,); one gradient."""
    xi = noise(state.x)
    new = at(log_prob, propose(state, step_size, xi))
    s = (math.sqrt(step_size) / 2) * (state.grad + new.grad)
    return metropolis(state, new, new.log_prob - state.log_prob - inner(s, xi + s / 2), noise)
