"""The torch side of the distances of points."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gentk import targets
from gentk.engine import inputs, precision
from gentk.engine.generative import picture
from gentk.engine.log import json_text
from gentk.engine.pictures import save
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import RecipeError
from gentk.metrics import points
from gentk.recipe.stamp import versions
from gentk.tasks.evaluate._reference import images_of, samples_of
from gentk.tasks.evaluate._sources import Source


def execute(job: Job) -> Outcome:
    """Measures and writes the distances of a job. Raises GentkError for what the user can mend."""
    recipe, where = job.recipe, precision.device(job.device)
    source, files = samples_of(recipe, where)
    reference = images_of(recipe)
    for each in (source, reference):
        if len(each.shape) != 1 or each.shape != reference.shape:
            raise RecipeError(f"`{each.name}` has samples of shape {each.shape}; `points` compares points of one space")
    if job.dry_run:
        return Outcome("planned", answer=f"distances of {source.n} points to {reference.n}, in {job.out}")
    made_from = inputs.digests(files)
    with Run(inputs.renewed(job, made_from)) as run:
        if run.done is None:
            run.update(inputs=made_from)
            with listening() as stop:
                stop.anywhere = True  # nothing is kept before the end: it can be done again
                _work(run, source, reference)
    outcome = run.outcome()
    answer = (run.folder / "answer.txt").read_text("utf-8").rstrip()
    return Outcome(outcome.status, outcome.metrics, outcome.run, outcome.seconds, answer=answer)


def _work(run: Run, source: Source, reference: Source) -> None:
    recipe, config = run.job.recipe, run.job.recipe.method
    x, y = (each.first(min(config.most, each.n)).all().double() for each in (source, reference))
    figures, lines = _figures(x, y, recipe)
    save(picture({"samples": x[:2000].float(), "reference": y[:2000].float()}), run.folder / "samples" / "points.png")
    result = {
        "figures": figures,
        "n": len(x),
        "n_reference": len(y),
        "samples": {"name": source.name} | source.facts,
        "reference": {"name": reference.name},
        "inputs": run.info["inputs"],
        "seed": recipe.seed,
        "versions": versions(),
    }
    (run.folder / "result.json").write_text(json_text(result, indent=1), encoding="utf-8")
    (run.folder / "answer.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run.update(metrics=figures | {"n": float(len(x)), "n_reference": float(len(y))})


def _figures(x: Tensor, y: Tensor, recipe: Any) -> tuple[dict[str, float], list[str]]:
    seed, counts = recipe.seed, f"N = {len(x)} against {len(y)}"
    # the bandwidth is the reference's own, so that the figures of two sets of samples compare
    bandwidth = points.median_distance(y, y, seed=seed)
    estimates = {"mmd": points.mmd(x, y, bandwidth), "energy": points.energy_distance(x, y)}
    score = _score(recipe.reference.name, x)
    if score is not None:
        estimates["ksd"] = points.ksd(x, score)
    figures: dict[str, float] = {}
    lines = []
    for name, found in estimates.items():
        figures |= {name: found.value, f"{name}_error": found.error}
        lines.append(f"{name} {found.value:.4g} +- {found.error:.2g}, {counts}")
    for p in (1, 2):
        figures[f"sliced_w{p}"] = points.sliced_wasserstein(x, y, p, directions=recipe.method.directions, seed=seed)
        lines.append(f"sliced_w{p} {figures[f'sliced_w{p}']:.4g}, {recipe.method.directions} directions, {counts}")
    told = points.c2st(x, y, seed=seed)
    figures["c2st"] = told.accuracy.value
    lines.append(
        f"c2st {told.accuracy.value:.4f} [{told.accuracy.low:.4f}, {told.accuracy.high:.4f}] (0.5: not to be told "
        f"apart), {told.n} points of each"
    )
    return figures, lines


def _score(name: str, x: Tensor) -> Tensor | None:
    """The reference's score at x where it has one."""
    target = targets.find(name.removeprefix("points:")) if name.startswith("points:") else None
    return None if target is None or target.log_prob is None else target.score(x)
