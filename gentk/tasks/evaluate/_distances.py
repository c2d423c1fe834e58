"""The torch side of the distances of points."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gentk import targets
from gentk.data.wide import POINTS
from gentk.engine import precision
from gentk.engine.generative import picture
from gentk.engine.run import Job, Outcome, Run
from gentk.errors import RecipeError
from gentk.metrics import points
from gentk.tasks.evaluate._recording import Finding, record
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
    return record(job, files, lambda run: _measure(run, source, reference))


def _measure(run: Run, source: Source, reference: Source) -> Finding:
    recipe, config = run.job.recipe, run.job.recipe.method
    x, y = (each.first(min(config.most, each.n)).all().double() for each in (source, reference))
    figures, lines = _figures(x, y, recipe)
    against = {"name": reference.name, "points": recipe.reference.points}
    return Finding(
        figures,
        lines,
        len(x),
        len(y),
        comparable={"reference": against, "n": len(x), "n_reference": len(y), "directions": config.directions},
        facts={"samples": {"name": source.name} | source.facts},
        pictures={"points": picture({"samples": x[:2000].float(), "reference": y[:2000].float()})},
    )


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
    plain = name.removeprefix("points:")
    target = targets.find(plain) if name.startswith("points:") and plain not in POINTS else None
    return None if target is None or target.log_prob is None else target.score(x)
