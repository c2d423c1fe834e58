"""AutoAttack (Croce and Hein 2020, arXiv:2003.01690) by the library that is here: APGD, targeted APGD, FAB and Square.

Its printed number is no accuracy: it counts an image as broken after one wrong draw. Here only its images count, asked
again by whoever evaluates. torchattacks' class of the same name runs its attacks for 10 steps; in its place stand the
same four attacks at the 100 steps of the original.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Any, Literal

import torch
from torch import Tensor

from gentk.attacks.ball import Ball
from gentk.attacks.foreign import AsModule, undisturbed
from gentk.attacks.pgd import knows, within_memory
from gentk.attacks.victim import Grad, Victim, in_range
from gentk.errors import MissingAsset, RecipeError
from gentk.recipe import extras

Version = Literal["standard", "rand"]

_NORM = {"linf": "Linf", "l2": "L2"}
_EOT = 20  # of version rand


def autoattack(
    victim: Victim,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    ball: Ball,
    *,
    version: Version | None = None,
    seed: int,
    grad: Grad = "full",
    library: Literal["autoattack", "pyautoattack", "torchattacks"] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Images of AutoAttack for x (B, C, H, W) in [0, 1] and labels y (B,), and which library and version made them.

    `version` None: standard for a victim without noise, rand for one with. `library` None: the first that is here of
    autoattack, pyautoattack, torchattacks. Raises RecipeError for `standard` on a victim with noise and for fewer than
    four classes, MissingAsset where no library is.
    """
    in_range(x)
    knows(victim, y)
    noisy = victim.random or answers_differ(victim, x[:8], ids[:8], seed)
    version = version or ("rand" if noisy else "standard")
    if version == "standard" and noisy:
        raise RecipeError(
            "AutoAttack: version `standard` on a defence whose answers change from draw to draw",
            hint="--set attack.version=rand: it averages gradients over the defence's noise",
        )
    if victim.classes < 4:
        raise RecipeError(
            f"AutoAttack: its losses compare the four largest logits, the classifier has {victim.classes} classes",
            hint="--attack suite, or pgd, which take any number",
        )
    name, package = _library(library)
    model = AsModule(victim, seed, grad, x.device)
    with undisturbed(), within_memory(len(x)):
        torch.manual_seed(seed)
        if name == "torchattacks":
            attack = _hundred_steps(package, model, ball, version, victim.classes, seed)
            moved = attack(x.clone(), y.clone())
        else:
            moved = _official(name, package, model, ball, version, victim.classes, seed, x, y)
    said = {"eot": _EOT} if version == "rand" else {"eot": 1, "queries": 5000}
    facts = {"library": f"{name} {_version_of(name)}".strip(), "version": version, "steps": 100, "calls": model.calls}
    facts |= said
    return ball.project(moved.detach().to(x), x), facts


@torch.no_grad()  # a question
def answers_differ(victim: Victim, x: Tensor, ids: Tensor, seed: int) -> bool:
    """Whether two draws give two answers, whatever the victim says of itself."""
    first, second = (victim.logits(x, victim.tape(ids, seed, draw)) for draw in (0, 1))
    return not torch.equal(first, second)


def _library(wanted: str | None) -> tuple[str, Any]:
    for name in (wanted,) if wanted else ("autoattack", "pyautoattack"):
        with suppress(ImportError):
            return name, importlib.import_module(name)
    if wanted not in (None, "torchattacks"):
        raise MissingAsset(f"{wanted} is not installed", hint="pip install pyautoattack, or 'gentk[robust]'")
    return "torchattacks", extras.load("torchattacks", "robust")


def _version_of(name: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return ""


def _hundred_steps(package: Any, model: AsModule, ball: Ball, version: str, classes: int, seed: int) -> Any:
    """torchattacks' parts with the original's settings."""
    own = {"norm": _NORM[ball.norm], "eps": ball.eps, "seed": seed}
    if version == "rand":
        parts = [package.APGD(model, steps=100, loss=loss, eot_iter=_EOT, **own) for loss in ("ce", "dlr")]
    else:
        parts = [
            package.APGD(model, steps=100, loss="ce", **own),
            package.APGDT(model, steps=100, n_classes=classes, **own),
            package.FAB(model, steps=100, multi_targeted=True, n_classes=classes, **own),
            package.Square(model, n_queries=5000, resc_schedule=False, **own),
        ]
    return package.MultiAttack(parts)


def _official(
    name: str, package: Any, model: AsModule, ball: Ball, version: str, classes: int, seed: int, x: Tensor, y: Tensor
) -> Tensor:
    norm = _NORM[ball.norm]
    quiet = {"verbose": False} if name == "autoattack" else {}
    attack = package.AutoAttack(model, norm=norm, eps=ball.eps, seed=seed, version=version, device=x.device, **quiet)
    # Its nine targets are the other classes of ten.
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
    size = {"bs" if name == "autoattack" else "batch_size": len(x)}
    logger = logging.getLogger("auto-attack")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with _without_tracing(name):
        try:
            found = attack.run_standard_evaluation(x.clone(), y.clone(), **size)
        finally:
            logger.setLevel(level)
    return found if isinstance(found, Tensor) else found[0]


@contextmanager
def _without_tracing(name: str) -> Iterator[None]:
    """Takes out the library's search for dynamic defences, which ends by removing every debugger and coverage."""
    checks: Any = importlib.import_module(f"{name}.checks")
    before = checks.check_dynamic
    checks.check_dynamic = lambda *_, **__: None
    try:
        yield
    finally:
        checks.check_dynamic = before
