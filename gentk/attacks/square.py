"""Square attack (Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 and 2): random search without gradients.

Where it beats an attack that has gradients, these are masked. Against a random defence a candidate and the image that
it is to replace are compared on the same draws, and one lucky draw ends nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gentk.attacks.ball import Ball
from gentk.attacks.pgd import knows, within_memory
from gentk.attacks.victim import Tape, Victim, in_range
from gentk.errors import RecipeError

_PART = 0.8  # of the pixels in the first squares
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # iterations of 10,000 after which that share is halved
_DRAWN = 256  # iterations whose random numbers are drawn at once


@torch.no_grad()  # the attack asks for answers only
def square(
    victim: Victim,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    ball: Ball,
    *,
    queries: int,
    eot: int = 1,
    seed: int,
    chunk: int = 1024,
) -> Tensor:
    """Adversarial images for x (B, C, S, S) in [0, 1], labels y and ids (B,): `queries` candidates each, Linf only.

    Every image has its own squares, so row i depends on (x[i], y[i], ids[i], seed) only. A row rests once all its `eot`
    draws are wrong (one, where the victim draws no noise). Raises RecipeError for another norm.
    """
    in_range(x)
    knows(victim, y)
    if ball.norm != "linf":
        raise RecipeError(
            f"square: norm {ball.norm} is not built in", hint="--attack torchattacks:Square knows l2 (gentk[robust])"
        )
    eot = eot if victim.random else 1
    tape = Tape.of(ids, seed, -1)
    c, side = x.shape[1], x.shape[2]
    best = ball.project(x + ball.eps * _signs(tape.uniform("stripes", (c, 1, side), like=x)), x)
    margin, beaten = _ask(victim, best, y, ids, seed, 0, eot, chunk)
    drawn = torch.empty(0)
    for i in range(queries):
        if i % _DRAWN == 0:
            drawn = tape.uniform(f"squares {i}", (_DRAWN, 2 + c), like=x)
        rows = (~beaten).nonzero()[:, 0]
        if len(rows) == 0:
            break
        s = max(round(side * math.sqrt(_share(i))), 1)
        numbers = drawn[rows, i % _DRAWN]
        new = best[rows] + 2 * ball.eps * _squares(numbers, c, side, s)
        new = ball.project(new, x[rows])
        first = (i + 1) * eot if victim.random else 0
        there, kept = y[rows], ids.to(rows.device)[rows]
        if victim.random:  # what the incumbent owes to its lucky draws must not count
            margin[rows], _ = _ask(victim, best[rows], there, kept, seed, first, eot, chunk)
        found, wrong = _ask(victim, new, there, kept, seed, first, eot, chunk)
        better = (found < margin[rows]) | wrong
        best[rows] = torch.where(better[:, None, None, None], new, best[rows])
        margin[rows] = torch.where(better, found, margin[rows])
        beaten[rows] = wrong
    return best


def _ask(
    victim: Victim, x: Tensor, y: Tensor, ids: Tensor, seed: int, first: int, eot: int, chunk: int
) -> tuple[Tensor, Tensor]:
    """Mean over draws of the true logit minus the largest other one, and whether every draw is wrong: (B,) each."""
    tape = Tape.cat([victim.tape(ids, seed, first + k) for k in range(eot)])
    rows = torch.arange(len(x), device=x.device).repeat(eot)
    with within_memory(min(chunk, len(rows))):
        parts = torch.split(torch.arange(len(rows)), chunk)
        logits = torch.cat([victim.logits(x[rows[part.to(rows.device)]], tape[part]) for part in parts])
    label = y.repeat(eot)[:, None]
    true = logits.gather(1, label)[:, 0]
    others = logits.scatter(1, label, -math.inf).amax(1)
    margins = (true - others).reshape(eot, -1)
    return margins.mean(0), (margins <= 0).all(0)


def _squares(numbers: Tensor, channels: int, side: int, s: int) -> Tensor:
    """One s x s square per row with a sign per channel, zero elsewhere: (B, channels, side, side)."""
    corner = (numbers[:, :2] * (side - s + 1)).long().clamp_max(side - s)
    places = torch.arange(side, device=numbers.device)
    inside = (places >= corner[..., None]) & (places < corner[..., None] + s)
    window = inside[:, 0, :, None] & inside[:, 1, None, :]
    return _signs(numbers[:, 2 : 2 + channels])[:, :, None, None] * window[:, None]


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0).to(uniform)


def _share(iteration: int) -> float:
    """The share of pixels that a square covers, by the schedule of the paper's section 3."""
    return _PART * 0.5 ** sum(iteration > bound for bound in _HALVINGS)
