"""Models that a run keeps: those of its end in `export/`, and in `best/` those of its best preview."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path

from gentk.engine import dist
from gentk.engine.method import Export, Result
from gentk.engine.run import Run
from gentk.nets import weights
from gentk.recipe.explain import dump

_DIVERGED = 3.0  # times the best distance: far beyond the scatter of a preview's


def keep(run: Run, folder: Path, exports: Mapping[str, Export], metrics: Mapping[str, float]) -> None:
    """Writes each model with its header, the recipe, the seed and its figures. Raises RunFailed if the disk refuses."""
    if not dist.current().first:
        return
    recipe = run.job.recipe
    for name, export in exports.items():
        header = {**export.header, "recipe": dump(recipe), "seed": recipe.seed, "metrics": dict(metrics)}
        weights.save(folder / f"{name}.safetensors", export.net, header)


def watch(run: Run, step: int, shown: Result) -> None:
    """Keeps the models of a preview whose Frechet distance `fd` is the least so far, and warns of one that is far off.

    The loss of a one-step method says nothing of how far it is, and a run that has diverged does not come back: its
    best models are worth more than its last. What was seen stands in run.json, as `best` and `diverged`, so that a
    resumed run goes on from there.
    """
    _say(run, step, shown)
    if shown.rank is not None:
        _rank(run, step, shown)
        return
    distance = shown.metrics.get("fd")
    if distance is None or not shown.exports:
        return
    best = run.info.get("best")
    if best is None or distance < best["fd"]:
        keep(run, run.folder / "best", shown.exports, shown.metrics)
        run.update(best={"step": step, "fd": distance})
    elif not distance <= _DIVERGED * best["fd"] and math.isfinite(best["fd"]) and "diverged" not in run.info:
        line = (
            f"step {step}: the Frechet distance {distance:.4g} is more than {_DIVERGED:g} times the best, "
            f"{best['fd']:.4g} at step {best['step']}: diverging; best/ holds the models of then"
        )
        run.warn(line)
        run.update(diverged=step)
        if not run.job.quiet:
            print(f"warning: {line}", file=sys.stderr)


def _say(run: Run, step: int, shown: Result) -> None:
    """Remarks that are new, into run.json, the log and stderr; and the end of the training, where it is asked for."""
    known = list(run.info.get("remarks", ()))
    new = [each for each in shown.remarks if each["name"] not in {k["name"] for k in known}]
    for remark in new:
        line = f"step {step}: {remark['words']}"
        warning = remark["kind"] != "note"
        if warning:
            run.warn(line)
        else:
            run.log.text(line)
        if not run.job.quiet:
            print(f"warning: {line}" if warning else line, file=sys.stderr)
    if new:
        run.update(remarks=known + [each | {"words": f"Step {step}: {each['words']}"} for each in new])
    if shown.halt:
        run.update(halted=step)


def _rank(run: Run, step: int, shown: Result) -> None:
    """Keeps the models of the least rank so far; of none that is infinite."""
    assert shown.rank is not None
    best = run.info.get("best")
    if math.isfinite(shown.rank) and (best is None or shown.rank < best["rank"]):
        keep(run, run.folder / "best", shown.exports, shown.metrics)
        run.update(best={"step": step, "rank": shown.rank})
