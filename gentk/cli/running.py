"""What a task's command does: its run, or every run of its sweep one after the other."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gentk.cli import console
from gentk.cli.commands import Asked
from gentk.engine import world
from gentk.errors import RecipeError, RunFailed
from gentk.recipe import registry


def perform(asked: Asked) -> None:
    """Runs what was asked for and prints the answer: run folders on stdout, or JSON."""
    if not asked.swept:
        answer = _run(asked, asked.points[0][1], asked.out, asked.mode)
        if asked.how["json"] and not world.rank():
            console.as_json(answer)
        return
    _sweep(asked)


def _sweep(asked: Asked) -> None:
    """Every point in its own folder. What is done already stays as it is; a run that fails is no reason to stop.

    Raises Stopped at the first run that was stopped, so that the same command goes on there; RunFailed at the end,
    naming those that failed.
    """
    from gentk.engine.stop import listening

    mode = asked.mode
    if mode == "resume":
        if not any((asked.folder(point) / "run.json").exists() for point, _ in asked.points):
            raise RecipeError(f"--resume: {asked.out} holds none of these runs", hint="leave --resume out")
        mode = "auto"
    answers, failed = [], []
    with listening() as stop:
        stop.anywhere = True  # between two runs; within one, the run itself listens
        for k, (point, loaded) in enumerate(asked.points, start=1):
            console.note(f"run {k} of {len(asked.points)}: {' '.join(point.sets)}")
            try:
                answers.append(_run(asked, loaded, asked.folder(point), mode))
            except RunFailed as error:
                failed.append(point.name)
                console.note(f"warning: {point.name}: {error}")
    if asked.how["json"] and not world.rank():
        console.as_json(answers)
    if len(answers) > 1 and not asked.how["dry_run"]:
        _page(asked)
    if failed:
        raise RunFailed(
            f"{len(failed)} of {len(asked.points)} runs failed: {', '.join(failed)}",
            hint="the same command tries them again and leaves the others as they are",
        )


def _page(asked: Asked) -> None:
    """The page that compares the runs of a sweep; of several processes the first writes it."""
    from gentk.engine import comparison

    if not world.rank():
        folders = [asked.folder(point) for point, _ in asked.points if (asked.folder(point) / "run.json").exists()]
        console.note(f"comparison: {comparison.write(folders, asked.out / 'compare.html')}")


def _run(asked: Asked, loaded: Any, folder: Path, mode: Any) -> dict[str, Any]:
    """One run; returns what `--json` says of it and, without that, prints its folder."""
    from gentk.engine.run import Job

    how = {name: asked.how[name] for name in ("device", "quiet", "dry_run")}
    how["quiet"] = how["quiet"] or world.rank() > 0  # of several processes the first speaks
    job = Job(asked.task, loaded, folder, mode, command=shlex.join(["gentk", *sys.argv[1:]]), **how)
    run: Callable[[Job], Any] = registry.task_module(asked.task).run
    with world.together(job):
        outcome = run(job)
    if not asked.how["json"] and not world.rank():
        if outcome.answer:
            console.out(outcome.answer)
        if outcome.run is not None:
            for name, value in outcome.metrics.items():
                console.note(f"  {name:24} {value:.6g}")
            if (outcome.run / "report.html").exists():
                console.note(f"report: {outcome.run / 'report.html'}")
            console.out(str(outcome.run))
    return {
        "task": asked.task,
        "method": loaded.recipe.method.name,
        "recipe": job.name,
        "run": None if outcome.run is None else str(outcome.run),
        "status": outcome.status,
        "seconds": outcome.seconds,
        "metrics": outcome.metrics,
    }
