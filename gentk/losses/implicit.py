"""Losses of implicit samplers x = G(z): samplers whose draws are one call of a network and whose density is not known.

    symbol     meaning
    x          draws of the sampler, (B, D); its law is p
    log_q      the target, known up to a constant; an energy U is -log_q
    s_q        `target`, the target's score grad log_q
    S          `score`, a network that stands for the score of p
    u          S - s_q
    sigma      noise of denoising score matching: its S is the score of p * N(0, sigma^2)

A field maps points (B, D) to vectors (B, D), row by row, and is differentiable in its argument. The parameters of S and
of the target must be frozen while the sampler learns: all gradients flow through x. The sampler's objectives are
scalars of points, (B,); what the sampler descends is `pushed(x, force(objective, x))`, so that a row's force can be
clipped. Derivations: arXiv:2306.04952 for the two divergences; the second path of the Fisher gradient by Stein's
identity, E_p[f . s_p + div f] = 0 for any fixed f, differentiated in the sampler's parameters at f = u.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]


def score_of(log_prob: Callable[[Tensor], Tensor]) -> Field:
    """The field grad log_prob, (B, D) -> (B, D), with a graph where its argument has one. log_prob: (B, D) -> (B,)."""

    def score(x: Tensor) -> Tensor:
        with torch.enable_grad():
            here = x if x.requires_grad else x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(log_prob(here).sum(), here, create_graph=x.requires_grad)
        return grad

    return score


def dsm(score: Field, x: Tensor, eps: Tensor, sigma: float) -> Tensor:
    """|sigma S(x + sigma eps) + eps|^2: (B, D) -> (B,), eps standard normal (Vincent 2011).

    The gradient is the loss's own, in S; its minimiser is the score of p * N(0, sigma^2), not that of p. Its noise
    grows as 1 / sigma. Pass x without a graph.
    """
    return (sigma * score(x + sigma * eps) + eps).square().sum(1)


def kl(score: Field, target: Field, x: Tensor) -> Tensor:
    """The force u(x) (B, D), without a graph: pushed along it, the sampler descends KL(p | q).

    d KL / d phi = E[(dx / d phi)^T u(x)]: the explicit derivative of log p at a fixed x has mean zero. With the S of
    `dsm` the optimum for q = N(0, 1) has variance 1 - sigma^2.
    """
    x = x.detach()
    with torch.no_grad():
        return score(x) - target(x)


def fisher(score: Field, target: Field, x: Tensor, probe: Tensor | None = None) -> Tensor:
    """|u|^2 / 2 - u . S - div u at x: (B, D) -> (B,). Its force is that of half the Fisher divergence E_p |u|^2 / 2.

    |u|^2 / 2 alone is the path through x; the rest is the path through s_p at a fixed x, without which the force has
    the wrong sign for a sampler that is too narrow. In value it is minus the objective of a learned Stein discrepancy
    (Hu et al. 2018, arXiv:1810.03545) at its optimum. `probe` as in `divergence`. Third derivatives of the target
    enter.
    """
    s = score(x)
    u = s - target(x)
    return 0.5 * u.square().sum(1) - (u * s).sum(1) - divergence(u, x, probe)


def denoising_fisher(score: Field, target: Field, x: Tensor, eps: Tensor, sigma: float) -> Tensor:
    """|u|^2 / 2 - u . (S + eps / sigma) at x = (draws + sigma eps) (B, D) -> (B,), the points already noised.

    Its force is that of half the Fisher divergence between p * N(0, sigma^2) and q, without divergences or third
    derivatives: for noised points E[f . eps] = -sigma E[div f]. Its optimum is narrower than q by sigma^2, its noise
    grows as 1 / sigma. S must be the score of the noised law: `dsm` at the same sigma.
    """
    s = score(x)
    u = s - target(x)
    return 0.5 * u.square().sum(1) - (u * (s + eps / sigma)).sum(1)


def divergence(vector: Tensor, x: Tensor, probe: Tensor | None = None) -> Tensor:
    """div f at x (B, D) -> (B,) of vector = f(x) (B, D), with a graph.

    Exactly, by D backward passes; or Hutchinson's estimate v . (df/dx v) by one, v = probe (B, D) of mean 0 and
    covariance I.
    """
    if probe is not None:
        (pulled,) = torch.autograd.grad((vector * probe).sum(), x, create_graph=True)
        return (pulled * probe).sum(1)
    total = torch.zeros_like(x[:, 0])
    for k in range(x.shape[1]):
        (row,) = torch.autograd.grad(vector[:, k].sum(), x, create_graph=True)
        total = total + row[:, k]
    return total


def force(objective: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of objective(x).sum(), (B, D) -> (B,), in x alone: (B, D) without a graph."""
    with torch.enable_grad():
        here = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(objective(here).sum(), here)
    return grad


def clipped(rows: Tensor, most: float | None) -> tuple[Tensor, Tensor]:
    """Rows (B, D) of norm above `most` scaled down to it, and which those were (B,); None: as they are."""
    norms = rows.norm(dim=1)
    if most is None:
        return rows, torch.zeros_like(norms, dtype=torch.bool)
    return rows * (most / norms.clamp(min=most))[:, None], norms > most


def pushed(x: Tensor, along: Tensor) -> Tensor:
    """sg(along) . x: (B, D) -> (B,). Its gradient in the sampler is that of moving each draw against its force."""
    return (along.detach() * x).sum(1)


def stein(score: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    """(S(x) . x + D (B,), S(x) (B, D)): both have mean 0 where S is the score of the law of x (Stein's identity)."""
    s = score(x)
    return (s * x).sum(1) + x.shape[1], s
