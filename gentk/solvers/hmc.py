"""Hamiltonian Monte Carlo with a fixed number of leapfrog steps (Duane et al. 1987; Neal 2011, arXiv:1206.1901).

H(x, p) = -log p(x) + |p|^2 / 2: unit mass. Other masses are other coordinates, z = x / scale. `step_size` is the time
of one leapfrog step; with L of them a transition goes on for L step_size, which must not be near half a period of the
target (pi s for N(0, s^2)), where it maps x to -x and energies never mix.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gentk.errors import RecipeError
from gentk.solvers import Noise
from gentk.solvers.chains import LogProb, State, at, inner, metropolis

TARGET_ACCEPT = 0.8  # the best is between 0.6 and 0.9 for any target: Betancourt et al. 2014 (arXiv:1411.6669)


def step(state: State, log_prob: LogProb, step_size: float, noise: Noise, *, steps: int = 10) -> tuple[State, Tensor]:
    """One transition: noise for the momentum (n, ...), then for the acceptance (n,); `steps` gradients.

    log_accept (n,) is H at the start minus H at the end. Raises RecipeError for less than one leapfrog step.
    """
    if steps < 1:
        raise RecipeError(f"hmc: steps {steps}", hint="at least 1 leapfrog step")
    start = noise(state.x)
    new, end = leapfrog(state, start, lambda x: at(log_prob, x), step_size, steps)
    kinetic = inner(start - end, start + end) / 2  # the difference of squares, without their size
    return metropolis(state, new, new.log_prob - state.log_prob + kinetic, noise)


def leapfrog(
    state: State, momentum: Tensor, evaluate: Callable[[Tensor], State], step_size: float, steps: int
) -> tuple[State, Tensor]:
    """Half a kick, a drift, half a kick, `steps` times: reversible, volume-preserving, energy error O(step_size^2).

    momentum (n, ...); `evaluate` gives the state at x.
    """
    for _ in range(steps):
        momentum = momentum + step_size / 2 * state.grad
        state = evaluate(state.x + step_size * momentum)
        momentum = momentum + step_size / 2 * state.grad
    return state, momentum
