"""What Markov chain samplers share: the state of n chains, Metropolis' rule, step-size adaptation, and the loop.

An algorithm's file has a transition of all chains at once, a pure function,

    step(state, log_prob, step_size, noise, **own) -> (State, log_accept)

log_prob    (n, ...) -> (n,), a log-density up to a constant, each row by itself; an energy model is -E
step_size   a float, the same for all chains
noise       noise(x) -> standard normal of x's shape, new at every call, rows independent of each other
log_accept  (n,): log of Metropolis' ratio, which may exceed 0; -inf where the proposal could not be used

and `TARGET_ACCEPT`, the acceptance that its step size is tuned for. Uniforms for acceptance are made of normals too:
u = Phi(z), so log u = log_ndtr(z). With noise keyed by row, what chain k does at a given step size is then its own
affair, whatever the batch; only the adaptation pools the chains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from gentk.errors import RecipeError, RunFailed
from gentk.solvers import Noise

LogProb = Callable[[Tensor], Tensor]

DIVERGENT = -1000.0
"""log_accept below this is a divergence: Delta_max of Hoffman and Gelman (2014), section 3.1."""


class State(NamedTuple):
    """n chains: x (n, ...), log_prob (n,) and its gradient grad (n, ...) there, all detached."""

    x: Tensor
    log_prob: Tensor
    grad: Tensor


Kernel = Callable[[State, LogProb, float, Noise], tuple[State, Tensor]]


class Result(NamedTuple):
    """What `run` returns.

    x            (n, ...), the last state
    draws        (draws, n, ...), the states that were kept; None if none were
    acceptance   mean over chains and transitions after the warm-up of min(1, e^log_accept)
    step_size    the step size after the warm-up
    divergences  how many proposals after the warm-up had log_accept < DIVERGENT, those that were not finite included
    """

    x: Tensor
    draws: Tensor | None
    acceptance: float
    step_size: float
    divergences: int


class Adaptation(NamedTuple):
    """Dual averaging of the log step size towards a wanted acceptance: Hoffman and Gelman (2014), section 3.2.

    With their gamma = 0.05, t0 = 10, kappa = 0.75 and mu = log(10 times the first step size).
    """

    mu: float
    m: int  # transitions so far
    error: float  # H-bar_m
    log_step: float  # log epsilon_m+1
    log_mean: float  # its average, log epsilon-bar_m+1

    @classmethod
    def init(cls, step_size: float) -> Self:
        """Before any transition."""
        return cls(math.log(10 * step_size), 0, 0.0, math.log(step_size), 0.0)

    def update(self, acceptance: float, target: float) -> Self:
        """After a transition at `step_size` that had this acceptance, in [0, 1]."""
        m = self.m + 1
        error = self.error + (target - acceptance - self.error) / (m + 10)
        log_step = self.mu - math.sqrt(m) / 0.05 * error
        log_mean = self.log_mean + m**-0.75 * (log_step - self.log_mean)
        return type(self)(self.mu, m, error, log_step, log_mean)

    @property
    def step_size(self) -> float:
        """For the next transition of the warm-up."""
        return math.exp(self.log_step)

    @property
    def final(self) -> float:
        """For the transitions after the warm-up: the average, which settles while `step_size` wanders."""
        return math.exp(self.log_mean) if self.m else self.step_size


def at(log_prob: LogProb, x: Tensor) -> State:
    """The state at x (n, ...). Raises ValueError unless log_prob returns (n,), which would broadcast to nonsense."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = log_prob(x)
        if value.shape != x.shape[:1]:
            raise ValueError(f"log_prob of x {tuple(x.shape)} has shape {tuple(value.shape)}, expected ({len(x)},)")
        (grad,) = torch.autograd.grad(value.sum(), x)
    return State(x.detach(), value.detach(), grad)


def init(log_prob: LogProb, x: Tensor) -> State:
    """The state that chains at x (n, ...) start from. Raises RunFailed where log_prob or its gradient is not finite."""
    state = at(log_prob, x)
    bad = int((~finite(state)).sum())
    if bad:
        raise RunFailed(
            f"log_prob or its gradient is not finite where {bad} of {len(x)} chains start",
            hint="start the chains where the density is positive",
        )
    return state


def finite(state: State) -> Tensor:
    """(n,) bool: whether a chain's x, log-density and gradient are all finite."""
    return state.log_prob.isfinite() & _rows(state.x.isfinite()).all(1) & _rows(state.grad.isfinite()).all(1)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each chain: (n, ...), (n, ...) -> (n,)."""
    return _rows(a * b).sum(1)


def choose(taken: Tensor, new: State, old: State) -> State:
    """The new state of the chains in `taken` (n,), the old one of the others."""
    mask = taken.reshape(-1, *(1,) * (new.x.dim() - 1))
    return State(
        torch.where(mask, new.x, old.x),
        torch.where(taken, new.log_prob, old.log_prob),
        torch.where(mask, new.grad, old.grad),
    )


def metropolis(old: State, new: State, log_ratio: Tensor, noise: Noise) -> tuple[State, Tensor]:
    """Each chain goes to `new` with probability min(1, e^log_ratio), never where something is not finite.

    One call of noise, of shape (n,). Returns the states and log_accept: log_ratio (n,), -inf where `new` is unusable.
    """
    log_accept = torch.where(finite(new) & ~log_ratio.isnan(), log_ratio, -math.inf)
    return choose(torch.special.log_ndtr(noise(log_accept)) < log_accept, new, old), log_accept


def run(
    step: Kernel,
    log_prob: LogProb,
    x: Tensor,
    noise: Noise,
    *,
    draws: int,
    step_size: float,
    warmup: int = 0,
    thin: int = 1,
    target_accept: float | None = None,
    keep: bool = True,
    each: Callable[[int], None] | None = None,
) -> Result:
    """`warmup` transitions from x (n, ...), then draws * thin more, every thin-th of them a draw.

    step           an algorithm's `step`; its settings by functools.partial
    step_size      of the first transition; adapted during the warm-up unless target_accept is None, then fixed
    target_accept  mean acceptance over the chains, in (0, 1)
    keep           False: no draws are returned, and memory does not grow with their number
    each           called as each(i) after the i-th transition, warm-up included, i from 1

    Raises RecipeError for settings outside their range, RunFailed for chains that start where log_prob is not finite.
    """
    _check(draws=draws, step_size=step_size, warmup=warmup, thin=thin, target_accept=target_accept)
    state = init(log_prob, x)
    adaptation = Adaptation.init(step_size)
    for i in range(warmup):
        state, log_accept = step(state, log_prob, step_size, noise)
        if target_accept is not None:
            adaptation = adaptation.update(float(_probability(log_accept).mean()), target_accept)
            step_size = adaptation.final if i + 1 == warmup else adaptation.step_size
        if each:
            each(i + 1)
    kept = x.new_empty((draws, *x.shape)) if keep else None
    # On the device of the chains: nothing is read before the end, so no transition waits for another's figures.
    accepted = torch.zeros((), dtype=torch.float64, device=x.device)
    divergences = torch.zeros((), dtype=torch.int64, device=x.device)
    for i in range(draws * thin):
        state, log_accept = step(state, log_prob, step_size, noise)
        accepted += _probability(log_accept).mean()
        divergences += (log_accept < DIVERGENT).sum()
        if kept is not None and (i + 1) % thin == 0:
            kept[i // thin] = state.x
        if each:
            each(warmup + i + 1)
    return Result(state.x, kept, float(accepted) / (draws * thin), step_size, int(divergences))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1)  # unlike flatten(1), for x (n,) too


def _probability(log_accept: Tensor) -> Tensor:
    return log_accept.clamp(max=0).double().exp()


def _check(*, draws: int, step_size: float, warmup: int, thin: int, target_accept: float | None) -> None:
    for name, value, least in (("draws", draws, 1), ("thin", thin, 1), ("warmup", warmup, 0)):
        if value < least:
            raise RecipeError(f"{name}: {value}", hint=f"at least {least}")
    if not 0 < step_size < math.inf:
        raise RecipeError(f"step_size: {step_size}", hint="a positive number")
    if target_accept is not None and not 0 < target_accept < 1:
        raise RecipeError(f"target_accept: {target_accept}", hint="between 0 and 1; None: no adaptation")
