"""The torch side of `sample forecast`: the context at the end of a file, its sample paths, their table and picture."""

from __future__ import annotations

import csv
import time
from typing import Any

import numpy as np
import torch

from gentk.data import series
from gentk.engine import inputs, pictures, precision, ranks, rng
from gentk.engine.forecasting import Scale, fan, forecast
from gentk.engine.log import json_text
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import RecipeError
from gentk.processes.linear_denoiser import LinearDenoiser
from gentk.processes.models import load
from gentk.recipe.schema import Data
from gentk.recipe.series import Series
from gentk.recipe.store import model_path

_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


def execute(job: Job) -> Outcome:
    """Forecasts into the job's folder. Raises GentkError for what the user can mend."""
    recipe, where = job.recipe, precision.device(job.device)
    model = load(recipe.model, kinds=("forecaster",), where=where)
    section = Series.model_validate_json(json_text(model.header["series"]))
    name = model.header["data"]["name"] if recipe.method.file is None else f"series:{recipe.method.file}"
    path = series.locate(Data(name=name, root=recipe.method.root))
    if job.dry_run:
        return Outcome("planned", answer=f"{recipe.n} paths of {section.horizon} rows after {path}, in {job.out}")
    made_from = inputs.digests({recipe.model: model_path(recipe.model), name: path})
    with ranks.opened(inputs.renewed(job, made_from)) as run:
        if run.done is None:
            run.update(inputs=made_from)
            with listening() as stop:
                stop.anywhere = True  # nothing is half done
                ranks.by_first(lambda: _work(run, model, section, path))
    return run.outcome()


def _work(run: Run, model: Any, section: Series, path: Any) -> None:
    recipe = run.job.recipe
    columns, rows = series.read(path)
    if len(columns) != len(model.header["data"]["columns"]):
        wanted = ", ".join(model.header["data"]["columns"])
        raise RecipeError(f"{path}: {len(columns)} series, the model forecasts {wanted}")
    if len(rows) < section.context:
        raise RecipeError(f"{path}: {len(rows)} rows, the model needs a context of {section.context}")
    context = torch.tensor(rows[-section.context :], dtype=torch.float32)[None]
    denoiser = model.net
    assert isinstance(denoiser, LinearDenoiser)
    begun = time.perf_counter()
    paths = forecast(
        denoiser,
        Scale(*(torch.tensor(each) for each in model.header["scale"])),
        section,
        context,
        torch.tensor([len(rows) - section.context]),
        count=recipe.n,
        prior=model.header["prior"],
        gen=rng.generator(recipe.seed, "forecast"),
    )[:, 0]
    seconds = time.perf_counter() - begun
    temporary = run.folder / ".forecast.npz.tmp"
    with temporary.open("wb") as f:
        np.savez(f, paths=paths.numpy(), context=context[0].numpy(), columns=np.array(columns))
    temporary.replace(run.folder / "forecast.npz")
    with (run.folder / "forecast.csv").open("w", newline="", encoding="utf-8") as table:
        out = csv.writer(table)
        out.writerow(["row", *(f"{c} {100 * q:g} %" for c in columns for q in _LEVELS)])
        levels = torch.tensor(_LEVELS, dtype=paths.dtype)
        for k, each in enumerate(paths.quantile(levels, 0).permute(1, 2, 0).flatten(1), len(rows)):
            out.writerow([k, *(f"{v:.6g}" for v in each.tolist())])
    for i, column in enumerate(columns[:8]):
        picture = fan(context[0, :, i], paths[..., i], None, column)
        pictures.save(picture, run.folder / "samples" / f"forecast-{i}.png")
    run.update(
        metrics={"n": recipe.n, "nfe": section.nfe * section.horizon, "ms_per_sample": 1000 * seconds / recipe.n},
        model=model.name,
    )
