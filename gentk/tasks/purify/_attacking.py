"""Attacks in batches that survive a stop: what was made stands in `adversarial/`, whole or as parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gentk.attacks import stored, suite
from gentk.attacks.suite import Plan
from gentk.attacks.victim import Victim
from gentk.engine import dist, ranks
from gentk.engine.run import Run
from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.recipe import extras
from gentk.tasks.purify._bench import Bench, plan

_COUNTED = ("calls", "brought_into_the_ball", "left_as_broken")


@dataclass(frozen=True, eq=False)
class Made:
    """Adversarial images x (N, C, H, W) of one attack, what it knew, its seconds, and facts about it."""

    name: str
    knowledge: str
    x: Tensor
    seconds: float
    facts: dict[str, Any]


def names(recipe: Any, victim: Victim) -> tuple[tuple[str, ...], dict[str, str]]:
    """The attacks to run, and those that cannot run here with the reason.

    `blind` is always among them: on the bare classifier its images must succeed, or the attack itself is at fault.
    Raises MissingAsset for the library of an attack that was asked for by name, RecipeError for what it cannot do.
    """
    name = recipe.attack.name
    if recipe.attack.version == "standard" and victim.random and name in ("autoattack", "suite"):
        raise RecipeError(
            "attack.version: `standard` AutoAttack is for defences without noise, this one draws some",
            hint="leave it out, or attack.version=rand: gradients are then averaged over the noise",
        )
    if name == "none":
        return (), {}
    if name != "suite":
        if why := suite.absent(name):
            raise MissingAsset(why)
        if name.startswith("torchattacks:"):
            extras.load("torchattacks", "robust")
        return ((name,) if "blind" not in victim.modes or name == "blind" else ("blind", name)), {}
    wanted = suite.suite(victim)
    missing = {name: why for name in wanted if (why := suite.absent(name))}
    if recipe.threat.norm != "linf":
        missing["square"] = "it is built for linf only"
    return tuple(name for name in wanted if name not in missing), missing


@dataclass(frozen=True, eq=False)
class Broken:
    """Images that an earlier attack has broken on every draw (`which` (N,) bool) and what broke them, x (N, C, H, W).

    No rule counts them any more, whatever else is tried: a dear attack may leave them out and no minimum changes.
    """

    which: Tensor
    x: Tensor


def made(
    run: Run, bench: Bench, name: str, batch: int, told: Callable[[int], None], broken: Broken | None = None
) -> Made:
    """The images of an attack: from disk where this run has made them, else attacked now; `told(n)` per batch.

    Those that are `broken` already are kept as they are, and the facts say how many.
    """
    recipe, folder = run.job.recipe, run.folder
    settings = _settings(recipe, bench.victim, name)
    stamp = _stamp(run)
    whole = folder / "adversarial" / f"{_slug(name)}.safetensors"
    before = _kept(whole, stamp)
    if before is not None:
        told(len(bench))
        return _back(name, before)
    paths = {s: folder / "parts" / f"{_slug(name)}-{s:08d}.safetensors" for s in range(0, len(bench), batch)}
    for start in ranks.own(list(paths)):
        part = _kept(paths[start], stamp)
        if part is None:
            rows = slice(start, start + batch)
            part = _attacked(name, bench, rows, settings, broken, {"stamp": stamp, "name": name})
            stored.save(paths[start], part)
        told(len(part.ids) * dist.current().size)
    dist.current().wait()
    if dist.current().first:
        _join(run, whole, settings, [ranks.gathered(path, _kept(path, stamp)) for path in paths.values()])
    dist.current().wait()
    return _back(name, ranks.gathered(whole, _kept(whole, stamp)))


def _join(run: Run, whole: Path, settings: Plan, found: list[stored.Stored]) -> None:
    """One file of all batches in place of theirs."""
    x, clean, ids, y = (torch.cat([getattr(p, key) for p in found]) for key in ("x", "clean", "ids", "y"))
    joined = stored.Stored(
        x,
        clean,
        ids,
        y,
        settings.ball,
        _joined([part.facts for part in found]),
    )
    stored.save(whole, joined)
    shutil.rmtree(run.folder / "parts", ignore_errors=True)


def _settings(recipe: Any, victim: Victim, name: str) -> Plan:
    """The plan of one attack; within the suite AutoAttack has a gradient of its own."""
    settings = plan(recipe)
    if name != "autoattack" or recipe.attack.name != "suite":
        return settings
    usual: Literal["full", "surrogate"] = "surrogate" if "surrogate" in victim.modes else "full"
    return replace(settings, grad=recipe.attack.autoattack or usual)


def _attacked(
    name: str, bench: Bench, rows: slice, settings: Plan, broken: Broken | None, about: dict[str, Any]
) -> stored.Stored:
    """One batch of images attacked now."""
    x, y, ids = bench.x[rows], bench.y[rows], bench.ids[rows]
    left = torch.ones(len(x), dtype=torch.bool) if broken is None else ~broken.which[rows]
    there = left.to(x.device)
    moved = x.cpu().clone() if broken is None else broken.x[rows].clone()
    facts: dict[str, Any] = {"knowledge": settings.grad, "seconds": 0.0, "facts": {}}
    if bool(left.any()):
        done = suite.attack(name, bench.victim, x[there], y[there], ids[left], settings)
        moved[left] = done.x.cpu()
        facts = {"knowledge": done.knowledge, "seconds": done.seconds, "facts": done.facts}
    if broken is not None:
        facts["facts"] = facts["facts"] | {"left_as_broken": int((~left).sum())}
    return stored.Stored(moved, x.cpu(), ids, y.cpu(), settings.ball, about | facts)


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The facts of all batches: sums of what is counted, the rest of the batch that has most to say."""
    most = max(parts, key=lambda part: len(part["facts"]))
    summed = {k: sum(part["facts"].get(k, 0) for part in parts) for k in most["facts"] if k in _COUNTED}
    return most | {"seconds": sum(part["seconds"] for part in parts), "facts": most["facts"] | summed}


class Cells:
    """The points of a run's curves that are done, kept on disk from one process to the next."""

    def __init__(self, run: Run) -> None:
        self._path = run.folder / "parts" / "curves.json"
        self._found: dict[str, Any] = {"stamp": _stamp(run), "cells": {}}
        try:
            before = json.loads(self._path.read_text("utf-8"))
            if before["stamp"] == self._found["stamp"]:
                self._found = before
        except (OSError, ValueError, KeyError, TypeError):  # none, or one that broke off: made again
            pass

    def get(self, key: str, value: float) -> dict[str, float] | None:
        """The shares at one value of a key; None where it is still to be done."""
        shares: dict[str, float] | None = self._found["cells"].get(f"{key}={value!r}")
        return shares

    def put(self, key: str, value: float, shares: dict[str, float]) -> None:
        """Keeps them."""
        self._found["cells"][f"{key}={value!r}"] = shares
        self._path.parent.mkdir(exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self._found), "utf-8")
        temporary.replace(self._path)

    def clear(self) -> None:
        """All are done and in the result."""
        shutil.rmtree(self._path.parent, ignore_errors=True)


def _stamp(run: Run) -> str:
    return json.dumps([run.info["digest"], run.info["inputs"]], sort_keys=True)


def again(recipe: Any, bench: Bench) -> Iterator[Made]:
    """The stored images of a run or a file, for this bench's images. Raises GentkError where they are of others."""
    ball = plan(recipe).ball
    for path in located(recipe.stored):
        held = stored.load(path)
        if held.ball != ball:
            raise RecipeError(
                f"{path}: made for {held.ball.norm} {held.ball.eps:.6g}, the recipe says {ball.norm} {ball.eps:.6g}",
                hint=f"--norm {held.ball.norm} --eps {held.ball.eps!r}",
            )
        place = {int(k): i for i, k in enumerate(held.ids)}
        if absent := [int(k) for k in bench.ids if int(k) not in place]:
            raise RecipeError(
                f"{path}: image {absent[0]} is not in it ({len(absent)} of {len(bench)} are not)",
                hint="the same data, scoring.images and scoring.subset_seed as when it was made",
            )
        rows = torch.tensor([place[int(k)] for k in bench.ids])
        held.ball.check(held.x[rows], bench.x.cpu(), bench.ids, str(path))  # around today's clean images
        facts = held.facts
        yield Made(
            str(facts.get("name", path.stem)),
            str(facts.get("knowledge", "unknown")),
            held.x[rows],
            float(facts.get("seconds", 0.0)),
            dict(facts.get("facts", {})) | {"stored": str(path)},
        )


def located(ref: str) -> list[Path]:
    """The files of adversarial images that `ref`, a run folder or a file, means. Raises MissingAsset for none."""
    path = Path(ref).expanduser()
    found = [path] if path.is_file() else sorted((path / "adversarial").glob("*.safetensors"))
    if not found:
        raise MissingAsset(f"{path}: no adversarial images", hint="a folder of `gentk purify`, or a file of one")
    return found


def _back(name: str, held: stored.Stored) -> Made:
    facts = held.facts
    return Made(name, facts["knowledge"], held.x, float(facts["seconds"]), facts["facts"])


def _kept(path: Path, stamp: str) -> stored.Stored | None:
    """What an earlier process wrote, if it is whole and was made for this run."""
    if not path.is_file():
        return None
    try:
        held = stored.load(path)
    except GentkError:
        return None
    return held if held.facts.get("stamp") == stamp else None


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)
