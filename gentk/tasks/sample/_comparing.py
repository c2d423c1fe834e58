"""The torch side of `sample compare`: every solver at every budget, from the same noise."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from gentk import data
from gentk.engine import inputs, precision, ranks
from gentk.engine.draw import batches
from gentk.engine.generative import rounded
from gentk.engine.log import json_text
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import RecipeError
from gentk.metrics.features import extractor
from gentk.metrics.frechet import frechet
from gentk.metrics.quality import all_of, moments
from gentk.recipe.registry import method_module
from gentk.recipe.store import model_path
from gentk.tasks.sample._drawing import Plan, prepare

Row = dict[str, Any]


def _sections(config: Any) -> dict[str, Any]:
    """Label -> the section of every solver. Raises RecipeError for what is none."""
    found = {}
    for entry in config.solvers:
        values = {"name": entry} if isinstance(entry, str) else dict(entry)
        name = str(values.get("name"))
        module = method_module("sample", name)
        if module.KIND != "denoiser":
            raise RecipeError(f"method.solvers: `{name}` is not a solver for diffusion models")
        try:
            section = module.Config.model_validate(values)
        except ValidationError as e:
            fault = e.errors()[0]
            raise RecipeError(f"method.solvers: {name}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
        label = " ".join([name, *(f"{k}={json.dumps(v)}".replace('"', "") for k, v in values.items() if k != "name")])
        found[label] = section
    return found


def _plan(recipe: Any, section: Any, nfe: int, where: torch.device) -> Plan:
    return prepare(recipe.model_copy(update={"method": section, "nfe": nfe}), where)


def execute(job: Job) -> Outcome:
    """Compares the solvers of a job. Raises GentkError for what the user can mend."""
    recipe, where = job.recipe, precision.device(job.device)
    sections = _sections(recipe.method)
    for section in sections.values():  # a budget that does not suffice is said before the first sample
        for nfe in recipe.method.nfe:
            plan = _plan(recipe, section, nfe, where)
    if recipe.method.features and plan.model.data is None:
        raise RecipeError(f"method.features: `{recipe.model}` does not say what data it was trained on")
    if job.dry_run:
        cells = len(sections) * len(recipe.method.nfe)
        return Outcome("planned", answer=f"{cells} cells of {recipe.n} samples, in {job.out}")
    made_from = inputs.digests({recipe.model: model_path(recipe.model)})
    with ranks.opened(inputs.renewed(job, made_from)) as run:
        if run.done is None:
            run.update(inputs=made_from)
            with listening() as stop:
                stop.anywhere = True  # every cell that is done is on disk
                ranks.by_first(lambda: _work(run, sections, where))
    outcome = run.outcome()
    table = ranks.said(run, "table.md")
    return Outcome(outcome.status, outcome.metrics, outcome.run, outcome.seconds, answer=table)


def _work(run: Run, sections: dict[str, Any], where: torch.device) -> None:
    recipe, path = run.job.recipe, run.folder / "table.json"
    stamp = [run.info["digest"], run.info["inputs"]]
    rows = _kept(path, stamp)
    judge = None
    with Progress(len(sections) * len(recipe.method.nfe), recipe.n, quiet=run.job.quiet) as progress:
        exact = None
        for label, section in sections.items():
            for nfe in recipe.method.nfe:
                if not any((row["solver"], row["budget"]) == (label, nfe) for row in rows):
                    if exact is None:
                        exact = _exact(recipe, where)
                        judge = _judge(recipe, where)
                    plan = _plan(recipe, section, nfe, where)
                    rows.append({"solver": label, "budget": nfe} | _cell(recipe, plan, exact, judge, where))
                    _replace(path, json_text({"made": stamp, "rows": rows}, indent=1))
                progress.update(len(rows), {})
    (run.folder / "table.md").write_text(_table(rows), encoding="utf-8")
    _figure(rows, run.folder / "samples" / "compare.png", recipe)
    names = {"fd": "fd", "error": "error", "ms_per_sample": "ms"}
    metrics = {
        f"{short}_{row['solver']}_{row['budget']}".replace(" ", "_"): float(row[key])
        for row in rows
        for key, short in names.items()
        if row[key] is not None
    }
    run.update(metrics=metrics)


def _samples(recipe: Any, plan: Plan, n: int, where: torch.device) -> Tensor:
    return torch.cat([plan.draw(recipe.seed, first, m, where) for first, m in batches(recipe.first, n, recipe.batch)])


def _exact(recipe: Any, where: torch.device) -> Tensor:
    """The probability-flow ODE solved finely for the first samples: what deterministic solvers approximate."""
    heun = method_module("sample", "heun").Config(name="heun")
    return _samples(recipe, _plan(recipe, heun, recipe.method.exact_nfe, where), recipe.method.exact_n, where)


def _judge(recipe: Any, where: torch.device) -> Any:
    """samples -> Frechet distance to the training data; None without a feature network."""
    if recipe.method.features is None:
        return None
    heun = method_module("sample", "heun").Config(name="heun")
    model = _plan(recipe, heun, 35, where).model
    train = data.load(model.data, "train")
    extract = extractor(recipe.method.features, shape=train.shape, where=where)
    real = moments(extract(all_of(train)))
    return lambda samples: frechet(real, moments(extract(rounded(samples))))


def _cell(recipe: Any, plan: Plan, exact: Tensor, judge: Any, where: torch.device) -> Row:
    """Figures of one solver at one budget; the error is that from the same starts, so none where noise is drawn."""
    begun = time.perf_counter()
    n = max(recipe.n, len(exact)) if judge is None else recipe.n
    samples = _samples(recipe, plan, n, where)
    seconds = time.perf_counter() - begun
    error = None
    if _deterministic(plan):
        m = min(len(exact), len(samples))
        error = float((samples[:m] - exact[:m]).double().square().mean().sqrt())
    return {
        "nfe": plan.nfe,
        "steps": len(plan.grid) - 1,
        "error": error,
        "fd": None if judge is None else judge(samples),
        "ms_per_sample": 1000 * seconds / n,
    }


def _deterministic(plan: Plan) -> bool:
    drawn = []

    def noise(x: Tensor) -> Tensor:
        drawn.append(x)
        return torch.zeros_like(x)

    x = torch.zeros(1, 1, dtype=torch.float64)
    plan.solve(lambda x, t, cond: torch.zeros_like(x), plan.process, x, plan.grid, noise, **plan.own)
    return not drawn


def _kept(path: Path, stamp: list[Any]) -> list[Row]:
    try:
        found = json.loads(path.read_text("utf-8"))
        return list(found["rows"]) if found["made"] == stamp else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _table(rows: Sequence[Row]) -> str:
    lines = ["| solver | NFE | steps | error | FD | ms per sample |", "|---|---|---|---|---|---|"]
    for row in rows:
        error = "-" if row["error"] is None else f"{row['error']:.4f}"
        fd = "-" if row["fd"] is None else f"{row['fd']:.2f}"
        lines.append(
            f"| {row['solver']} | {row['nfe']} | {row['steps']} | {error} | {fd} | {row['ms_per_sample']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def _figure(rows: Sequence[Row], path: Path, recipe: Any) -> None:
    """Error and Frechet distance over NFE, on logarithmic axes, a line per solver, no panel without values."""
    from matplotlib.figure import Figure

    panels = [
        (key, title)
        for key, title in (("error", "RMS error against a fine solution"), ("fd", "Frechet distance"))
        if any(row[key] is not None for row in rows)
    ]
    figure = Figure(figsize=(5.2 * max(1, len(panels)), 4.2), layout="constrained")
    solvers = list(dict.fromkeys(row["solver"] for row in rows))
    for axes, (key, title) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        for i, name in enumerate(solvers):
            points = [(row["nfe"], row[key]) for row in rows if row["solver"] == name and row[key] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), "osD^vP*X"[i % 8] + "-", color=f"C{i % 10}", label=name, ms=4)
        axes.set(xscale="log", yscale="log", xlabel="NFE", title=title)
        ticks = sorted(set(recipe.method.nfe))
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[-1].legend(fontsize=8, frameon=False)
    figure.suptitle(f"{recipe.model}, {recipe.n} samples", fontsize=10)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
