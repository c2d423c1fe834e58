"""Projected gradient ascent on the cross-entropy, averaged over the defence's noise (Madry et al. 2018,
arXiv:1706.06083; expectation over transformation: Athalye et al. 2018, arXiv:1802.00420).

One attack for every kind of knowledge: the gradient of whole pipeline, of BPDA, of a surrogate or of the bare
classifier is the victim's `grad`, noise known to the attacker is `frozen`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gentk.attacks.ball import Ball
from gentk.attacks.victim import Grad, Tape, Victim, in_range
from gentk.errors import RecipeError, RunFailed


@dataclass(frozen=True)
class Pgd:
    """The settings: `steps` steps of size `step`, each on the gradient averaged over `eot` draws of the defence.

    `restarts` starts are kept by their success on fresh draws; `random_start` false begins at the clean image. `frozen`
    uses the same `eot` draws at every step, those of (seed, draw 0 ...). `chunk` is the number of rows per pass.
    """

    ball: Ball
    steps: int
    step: float
    eot: int = 1
    restarts: int = 1
    random_start: bool = True
    grad: Grad = "full"
    frozen: bool = False
    chunk: int = 1024


def pgd(victim: Victim, x: Tensor, y: Tensor, ids: Tensor, settings: Pgd, *, seed: int) -> Tensor:
    """Adversarial images (B, C, H, W) for x in [0, 1], labels y and ids (B,) int64; x is not changed.

    Row i depends on (x[i], y[i], ids[i], seed) only. Raises RecipeError for images out of range or labels that the
    victim does not know, RunFailed where a pass does not fit into memory.
    """
    in_range(x)
    knows(victim, y)
    best, best_wrong, best_loss = x, None, None
    for r in range(settings.restarts):
        found = _one_start(victim, x, y, ids, settings, seed, r)
        if settings.restarts == 1:
            return found
        wrong, loss = _judge(victim, found, y, ids, settings, seed, r)
        if best_wrong is None or best_loss is None:
            best, best_wrong, best_loss = found, wrong, loss
            continue
        better = (wrong > best_wrong) | ((wrong == best_wrong) & (loss > best_loss))
        best = torch.where(better[:, None, None, None], found, best)
        best_wrong, best_loss = torch.where(better, wrong, best_wrong), torch.where(better, loss, best_loss)
    return best


def _one_start(victim: Victim, x: Tensor, y: Tensor, ids: Tensor, settings: Pgd, seed: int, restart: int) -> Tensor:
    ball = settings.ball
    moved = ball.start(x, Tape.of(ids, seed, -1 - restart)) if settings.random_start else x.clone()
    for s in range(settings.steps):
        # Restarts and steps have draws of their own, copies of a step neighbouring ones: no draw is used twice.
        first = 0 if settings.frozen else (restart * (settings.steps + 1) + s) * settings.eot
        g = gradient(
            victim, moved, y, ids, grad=settings.grad, seed=seed, first=first, eot=settings.eot, chunk=settings.chunk
        )
        moved = ball.project(ball.ascend(moved, g, settings.step), x)
    return moved


def gradient(
    victim: Victim, x: Tensor, y: Tensor, ids: Tensor, *, grad: Grad, seed: int, first: int, eot: int, chunk: int = 1024
) -> Tensor:
    """Mean over draws `first` to `first + eot` of the gradient of each row's cross-entropy: (B, C, H, W).

    All B x eot rows go through the victim in passes of at most `chunk` rows; a victim without noise is asked once.
    """
    n, eot = len(x), eot if victim.random else 1
    tape = Tape.cat([victim.tape(ids, seed, first + k) for k in range(eot)])
    rows = torch.arange(n, device=x.device).repeat(eot)
    total = torch.zeros_like(x)
    with torch.enable_grad(), within_memory(min(chunk, len(rows))):
        for part in torch.split(torch.arange(len(rows)), chunk):
            chosen = rows[part.to(rows.device)]
            inner = x.detach()[chosen].requires_grad_(True)
            loss = F.cross_entropy(victim.logits(inner, tape[part], grad), y[chosen], reduction="sum")
            total.index_add_(0, chosen, torch.autograd.grad(loss, inner)[0])
    if not bool(torch.isfinite(total).all()):
        raise RunFailed(
            f"the {grad} gradient of the victim is not finite",
            hint="the defence diverges on these images: lower its steps",
        )
    return total / eot


@torch.no_grad()  # a measurement
def predictions(
    victim: Victim, x: Tensor, ids: Tensor, *, seed: int, draws: int, first: int = 0, chunk: int = 1024
) -> Tensor:
    """The victim's answers to x on draws `first` to `first + draws`: (B, draws) int64 on the CPU.

    A victim without noise is asked once.
    """
    asked = draws if victim.random else 1
    answers = _logits(victim, x, ids, seed, first, asked, chunk).argmax(-1).cpu()
    return answers.expand(-1, draws) if asked < draws else answers


def _judge(
    victim: Victim, x: Tensor, y: Tensor, ids: Tensor, settings: Pgd, seed: int, restart: int
) -> tuple[Tensor, Tensor]:
    """Wrong draws and mean cross-entropy of each row, on draws that no step of this start has seen: (B,) each."""
    draws = settings.eot if victim.random else 1
    first = 0 if settings.frozen else (restart * (settings.steps + 1) + settings.steps) * settings.eot
    with torch.no_grad():
        logits = _logits(victim, x, ids, seed, first, draws, settings.chunk)
    loss = F.cross_entropy(logits.flatten(0, 1), y.repeat_interleave(draws), reduction="none").reshape(-1, draws)
    return (logits.argmax(-1) != y[:, None]).sum(1), loss.mean(1)


def _logits(victim: Victim, x: Tensor, ids: Tensor, seed: int, first: int, draws: int, chunk: int) -> Tensor:
    """(B, draws, classes)."""
    tape = Tape.cat([victim.tape(ids, seed, first + k) for k in range(draws)])
    rows = torch.arange(len(x), device=x.device).repeat(draws)
    with within_memory(min(chunk, len(rows))):
        parts = torch.split(torch.arange(len(rows)), chunk)
        found = [victim.logits(x[rows[part.to(rows.device)]], tape[part]) for part in parts]
    return torch.cat(found).reshape(draws, len(x), -1).transpose(0, 1)


def knows(victim: Victim, y: Tensor) -> None:
    """Raises RecipeError for labels (B,) beyond the victim's classes."""
    if y.numel() and (int(y.min()) < 0 or int(y.max()) >= victim.classes):
        raise RecipeError(
            f"labels from {int(y.min())} to {int(y.max())}, the classifier has {victim.classes} classes",
            hint="a classifier of this data set is needed",
        )


@contextmanager
def within_memory(rows: int) -> Iterator[None]:
    """Turns a pass of `rows` rows that does not fit into memory into a RunFailed that advises the chunk size."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as e:
        if not isinstance(e, torch.OutOfMemoryError) and "can't allocate memory" not in str(e):
            raise
        raise RunFailed(
            f"a pass of {rows} rows (images times draws) does not fit into memory",
            hint=f"--set attack.chunk={max(1, rows // 2)}",
        ) from e
