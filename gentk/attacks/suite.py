"""Every attack by its name, and the suite: those that a claim of robustness must survive, each image by its worst.

What an attack knows is part of its result: `blind` the classifier, `bpda` the purifier's output, `surrogate` a cheaper
purifier, `full` all but the noise, `frozen` the noise too, `blackbox` answers only.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gentk.attacks import foreign
from gentk.attacks.autoattack import Version, autoattack
from gentk.attacks.ball import Ball
from gentk.attacks.pgd import Pgd, pgd
from gentk.attacks.square import square
from gentk.attacks.victim import Grad, Victim
from gentk.errors import MissingAsset, RecipeError, RunFailed


@dataclass(frozen=True)
class Plan:
    """Settings of all attacks on one victim; see `recipe.attacking.Attack`."""

    ball: Ball
    steps: int
    step: float
    eot: int = 1
    restarts: int = 1
    random_start: bool = True
    grad: Grad = "full"
    queries: int = 1000
    version: Version | None = None
    seed: int = 0
    chunk: int = 1024


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack made: images x (B, C, H, W) in the ball, what it knew, how long it took, and facts about it."""

    name: str
    knowledge: str
    x: Tensor
    seconds: float
    facts: dict[str, Any]


_GRADIENTS: dict[str, Grad] = {"blind": "blind", "bpda": "bpda", "surrogate": "surrogate"}


def attack(name: str, victim: Victim, x: Tensor, y: Tensor, ids: Tensor, plan: Plan) -> Attacked:
    """Runs the attack `name` (one of `recipe.attacking.NAMES` but for `suite`, `one-step`, or torchattacks:NAME).

    Checks that its images are in the ball and that the victim is as it was. Raises RecipeError for an unknown name or
    what the attack cannot do, MissingAsset without its library, RunFailed for images outside of the threat.
    """
    before, begun = foreign.fingerprint(victim), time.monotonic()
    moved, knowledge, facts = _run(name, victim, x, y, ids, plan)
    seconds = time.monotonic() - begun
    plan.ball.check(moved, x, ids, f"attack {name}")
    if foreign.fingerprint(victim) != before:
        raise RunFailed(
            f"attack {name}: the victim's weights, statistics or mode changed under it",
            hint="its figures are of another network: report this, and use one of gentk's own attacks",
        )
    return Attacked(name, knowledge, moved, seconds, facts)


def suite(victim: Victim) -> tuple[str, ...]:
    """The names that the suite runs on this victim, cheapest first; `surrogate` is mandatory where it has one.

    Every gradient that tells something different of it, a black box, AutoAttack, and the noise known as stress test.
    """
    own = [mode for mode in ("blind", "bpda", "surrogate") if mode in victim.modes]
    full = ["one-step", "pgd-eot", "frozen"] if victim.random else ["one-step", "pgd"]
    return (*own, *full, "square", "autoattack")


def absent(name: str) -> str:
    """Why the attack `name` cannot run here, or the empty string: a suite goes on without a library, but says so."""
    if name != "autoattack":
        return ""
    from gentk.attacks.autoattack import _library

    try:
        _library(None)
    except MissingAsset as e:
        return f"{e}; {e.hint}"
    return ""


def _run(
    name: str, victim: Victim, x: Tensor, y: Tensor, ids: Tensor, plan: Plan
) -> tuple[Tensor, str, dict[str, Any]]:
    if name == "none":
        return x.clone(), "none", {}
    if name == "square":
        # A step of EOT costs a query per draw: as many as the gradients get would be 20 times their cost.
        eot = min(plan.eot, 4)
        moved = square(victim, x, y, ids, plan.ball, queries=plan.queries, eot=eot, seed=plan.seed, chunk=plan.chunk)
        return moved, "blackbox", {"queries": plan.queries, "eot": eot if victim.random else 1}
    if name == "autoattack":
        moved, facts = autoattack(victim, x, y, ids, plan.ball, version=plan.version, seed=plan.seed, grad=plan.grad)
        return moved, plan.grad, facts
    kind, colon, rest = name.partition(":")
    if kind == "torchattacks" and colon:
        moved, facts = foreign.torchattacks(
            victim,
            x,
            y,
            rest,
            plan.ball,
            steps=plan.steps,
            step=plan.step,
            eot=plan.eot,
            seed=plan.seed,
            queries=plan.queries,
            grad=plan.grad,
        )
        return moved, plan.grad, facts
    settings = Pgd(
        plan.ball,
        plan.steps,
        plan.step,
        eot=plan.eot,
        restarts=plan.restarts,
        random_start=plan.random_start,
        grad=plan.grad,
        chunk=plan.chunk,
    )
    match name:
        case "blind":  # the classifier alone draws no noise: one draw says all
            settings = replace(settings, grad="blind", eot=1)
        case "bpda" | "surrogate":
            settings = replace(settings, grad=_GRADIENTS[name])
        case "pgd":
            settings = replace(settings, eot=1)
        case "pgd-eot":
            pass
        case "frozen":  # the very noise that it will be judged by: draw 0 of its own seed
            settings = replace(settings, eot=1, frozen=True)
        case "one-step":
            settings = replace(settings, steps=1, step=plan.ball.eps, random_start=False, restarts=1)
        case _:
            raise RecipeError(f"unknown attack `{name}`", hint="gentk.recipe.attacking.NAMES, or torchattacks:NAME")
    facts = {
        "steps": settings.steps,
        "step": settings.step,
        "eot": settings.eot if victim.random else 1,
        "restarts": settings.restarts,
        "random_start": settings.random_start,
    }
    knowledge = "frozen" if settings.frozen else settings.grad
    return pgd(victim, x, y, ids, settings, seed=plan.seed), knowledge, facts
