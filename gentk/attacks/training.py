"""Adversarial training: the loss on the worst image of a ball (Madry et al. 2018, arXiv:1706.06083), or clean loss plus
how much the worst image changes the answer (TRADES, Zhang et al. 2019, arXiv:1901.08573).

Gradient: that of the outer loss at the inner maximiser, which counts as a constant (Danskin's theorem: where the
maximum is unique, the gradient of max_x' L(w, x') is dL/dw at it). The inner loop runs in eval mode, so that it attacks
the network that answers and moves no batch statistics; the outer loss runs in the mode the network was in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.attacks.ball import Ball
from gentk.attacks.victim import Tape
from gentk.processes import rows

_NUDGE = 0.001  # of TRADES: its divergence has gradient 0 at the image itself


@dataclass(frozen=True)
class Inner:
    """The attack in the loop: `steps` steps of size `step` within `ball`."""

    ball: Ball
    steps: int
    step: float
    random_start: bool = True


def madry(
    net: nn.Module, x: Tensor, y: Tensor, inner: Inner, gen: torch.Generator, *, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy at the attacked images of x (B, C, H, W) in [0, 1], and the logits there (B, classes).

    `net` maps images in [0, 1] to logits; its gradients are as they were before the call.
    """
    start = inner.ball.start(x, _tape(x, gen)) if inner.random_start else x

    def objective(moved: Tensor) -> Tensor:
        return F.cross_entropy(net(moved), y, reduction="sum")

    logits = net(_maximiser(net, x, start, inner, objective))
    return F.cross_entropy(logits, y, label_smoothing=smoothing), logits


def trades(
    net: nn.Module, x: Tensor, y: Tensor, inner: Inner, gen: torch.Generator, *, beta: float, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Clean cross-entropy + beta KL(p(x) || p(x')) at the x' that maximises the KL, and the logits at x' (B, classes).

    The outer gradient goes through both sides of the KL; in the inner loop p(x) is a constant.
    """
    start = inner.ball.project(x + _NUDGE * _tape(x, gen).normal("nudge", x.shape[1:], like=x), x)
    with _answering(net), torch.no_grad():
        clean = F.log_softmax(net(x), 1)

    def objective(moved: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(net(moved), 1), clean, reduction="sum", log_target=True)

    moved = _maximiser(net, x, start, inner, objective)
    logits, attacked = net(x), net(moved)
    divergence = F.kl_div(F.log_softmax(attacked, 1), F.log_softmax(logits, 1), reduction="batchmean", log_target=True)
    return F.cross_entropy(logits, y, label_smoothing=smoothing) + beta * divergence, attacked


def _maximiser(net: nn.Module, x: Tensor, start: Tensor, inner: Inner, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """Ascends `objective` from `start`; a constant, so the outer gradient is that at a given image."""
    moved = start.detach()
    with _answering(net), torch.enable_grad():
        for _ in range(inner.steps):
            moved.requires_grad_(True)
            (g,) = torch.autograd.grad(objective(moved), moved)  # of the image alone: no weight gets a gradient
            moved = inner.ball.project(inner.ball.ascend(moved.detach(), g, inner.step), x)
    return moved.detach()


@contextmanager
def _answering(net: nn.Module) -> Iterator[None]:
    """`net` in eval mode; each module's own mode comes back."""
    before = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _tape(x: Tensor, gen: torch.Generator) -> Tape:
    return Tape(rows.randint(2**62, (len(x),), gen, device=gen.device).cpu())
