"""Losses that fit an energy to samples without its partition function: DCD's estimators, and CD for comparison.

Diffusion contrastive divergence (arXiv:2307.01668) of data p and model q ~ exp(-E), both sent through y = x + sigma xi:

    DCD = KL(p_0 | q_0) - KL(p_T | q_T) = E_y KL( p(x|y) | q(x|y) ) >= 0, and 0 for p = q alone

    gradient   E_p dE(x) - E_y E_{x- ~ q(.|y)} dE(x-),    q(x|y) ~ exp(-E(x) - |x - y|^2 / 2 tau)

    symbol   meaning
    sigma    standard deviation of the kernel's noise; tau = sigma^2 its variance
    y        x + sigma xi, the noised datum: it has no energy in any loss (it is no sample of q)
    x-, x'   negatives, whose energy goes up; candidates for the datum, given y

A variance-preserving kernel y = e^{-T/2} x + sqrt(1 - e^{-T}) xi is the same member of the family as sigma^2 = e^T - 1:
divergences do not see the scale of y. `energy` maps (k B, ...), k blocks of the batch's rows, to (k B,): a
time-dependent energy belongs at one level for each row, the same in every block, since DCD compares values of one
function. Losses are (B,); `Contrast` holds the mean energies of data and negatives beside them, for the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gentk.solvers import Noise
from gentk.solvers.chains import at, choose, finite, init

EnergyOf = Callable[[Tensor], Tensor]


class Contrast(NamedTuple):
    """`loss` (B,) to differentiate; energies of the data and of the negatives (their mean), (B,), with their graph."""

    loss: Tensor
    positive: Tensor
    negative: Tensor


def ranking(
    energy: EnergyOf, x: Tensor, sigma: Tensor | float, xi: Tensor, candidates: Tensor, *, w: float = 1.0
) -> Contrast:
    """log(w/M + mean_j e^{E(x) - E(x'_j)}): which of x and its M candidates x'_j = x + sigma (xi + xi_j) is the datum.

    x (B, ...), sigma () or (B,), xi (B, ...) and `candidates` (M, B, ...) standard normal. With w = 1 it is the
    negative log-probability of the right answer, less log M: the datum and its candidates are exchangeable given
    y = x + sigma xi but for their densities, so the gradient vanishes at the true density for every M, and the loss
    tends to DCD as M grows. w = 0 is self-normalised importance sampling: biased by O(1/M), unbounded below for M = 1.
    The same estimator under another name is energy discrepancy (arXiv:2307.06431).
    """
    m, s = len(candidates), _rows(sigma, x)
    others = x + s * (xi + candidates)
    values = energy(torch.cat([x[None], others]).flatten(0, 1)).reshape(m + 1, len(x))
    gaps = values[0] - values[1:]
    if w:
        gaps = torch.cat([torch.full_like(gaps[:1], math.log(w)), gaps])
    return Contrast(gaps.logsumexp(0) - math.log(m), values[0], values[1:].mean(0))


def contrast(energy: EnergyOf, x: Tensor, negatives: Tensor) -> Contrast:
    """E(x) - E(x-): x and negatives (B, ...), which are constants here.

    With samples of q(.|y) its gradient is DCD's. With samples of q it is the likelihood's; with those of a short chain
    on E (contrastive divergence) it lacks the term that runs through the chain, and does not vanish at the truth.
    """
    values = energy(torch.cat([x, negatives.detach()])).reshape(2, len(x))
    return Contrast(values[0] - values[1], values[0], values[1])


def one_step(energy: EnergyOf, x: Tensor, sigma: Tensor | float, xi: Tensor, *, antithetic: bool = False) -> Contrast:
    """(1/tau) [2 (E(x) - E(y)) + (tau/2) |grad E(x)|^2] with y = x + sigma xi: DCD to first order in tau, over tau/2.

    x, xi (B, ...), sigma () or (B,). From log q_tau = log q + (tau/2) (lap log q + |grad log q|^2) + O(tau^2) and Ito's
    rule for E(y); no second derivative. Its gradient tends to that of score matching as tau goes to 0, and is off by
    O(tau): good for sigma well below the data's finest scale. The gradient's norm is taken at x: at y the fitted
    variance would be larger by tau. `antithetic` averages over y and x - sigma xi, which costs one energy more and
    takes away the term of first order in sigma, most of the variance.
    """
    s = _rows(sigma, x)
    x = x.detach().requires_grad_()
    shifts = (xi, -xi) if antithetic else (xi,)
    with torch.enable_grad():
        clean = energy(x)
        (grad,) = torch.autograd.grad(clean.sum(), x, create_graph=True)
    noised = energy(torch.cat([x.detach() + s * each for each in shifts])).reshape(len(shifts), len(x)).mean(0)
    tau = s.reshape(-1) ** 2
    loss = 2 * (clean - noised) / tau + grad.square().flatten(1).sum(1) / 2
    return Contrast(loss, clean, noised)


def posterior(
    energy: EnergyOf, y: Tensor, tau: Tensor | float, noise: Noise, *, steps: int, step_size: Tensor | float
) -> Tensor:
    """Samples of q(x|y) ~ exp(-E(x) - |x - y|^2 / 2 tau): `steps` unadjusted Langevin steps from y (B, ...), detached.

    tau and step_size, the variance of a step's noise, () or (B,). Stable while step_size stays below 4 posterior
    variances, tau v / (tau + v) where the data's local variance is v: a step in proportion to tau alone diverges for
    tau >> v. Few steps leave the samples too near to y, which is a bias of the gradient. Raises RunFailed where the
    energy is not finite at y.
    """
    inverse = 1 / _rows(tau, y)

    def prior(x: Tensor) -> Tensor:
        return -energy(x) - ((x - y).square() * inverse / 2).flatten(1).sum(1)

    return langevin(prior, y, noise, steps=steps, step_size=step_size)


def langevin(
    log_prob: EnergyOf,
    x: Tensor,
    noise: Noise,
    *,
    steps: int,
    step_size: Tensor | float,
    temperature: float = 1.0,
    clip: float | None = None,
) -> Tensor:
    """`steps` unadjusted Langevin steps x + (a/2) g + sqrt(a T) xi from x (B, ...): the negatives of CD, detached.

    a = step_size, () or (B,); g the gradient of log_prob, each entry of (a/2) g cut to [-clip, clip]. T other than 1
    samples exp(log_prob / T). A step that leaves the finite numbers is not taken. Raises RunFailed where log_prob is
    not finite at x.
    """
    a = _rows(step_size, x)
    state = init(log_prob, x)
    for _ in range(steps):
        drift = a / 2 * state.grad
        if clip is not None:
            drift = drift.clamp(-clip, clip)
        new = at(log_prob, state.x + drift + (a * temperature).sqrt() * noise(state.x))
        state = choose(finite(new), new, state)
    return state.x


def _rows(a: Tensor | float, x: Tensor) -> Tensor:
    """a, () or (B,), shaped to multiply x (B, ...)."""
    a = torch.as_tensor(a, dtype=x.dtype, device=x.device)
    return a.expand(len(x)).reshape(-1, *(1,) * (x.dim() - 1))
