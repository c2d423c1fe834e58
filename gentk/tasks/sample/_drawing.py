"""The torch side of `sample`: model, solver, grid, files."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gentk.data import to_uint8
from gentk.engine import inputs, pictures, precision
from gentk.engine.draw import draw, labels
from gentk.engine.generative import picture
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import RecipeError, RunFailed
from gentk.processes.denoiser import Denoise, Denoiser
from gentk.processes.grids import karras, to_times
from gentk.processes.guidance import calls, guided
from gentk.processes.models import Model, fast_layout, load
from gentk.recipe.registry import method_module
from gentk.recipe.store import model_path

_IN_GRID = 400  # samples in the picture, at most


def _prepare(recipe: Any, where: torch.device) -> tuple[Model, Denoise, Tensor, tuple[int, ...]]:
    """The model, what the solver calls, its grid and the classes to cycle through."""
    solver = recipe.method
    kind = method_module("sample", solver.name).KIND
    model = load(recipe.model, kinds=("denoiser", "generator"), where=where)
    if model.header["kind"] != kind:
        other = "one-step" if kind == "denoiser" else "heun"
        raise RecipeError(
            f"`{recipe.model}` is a {model.header['kind']}, `{solver.name}` samples a {kind}",
            hint=f"gentk sample {other} --model {recipe.model}",
        )
    wanted = tuple(range(model.classes)) if recipe.labels is None else recipe.labels
    if wanted and max(wanted) >= model.classes:
        has = f"classes 0 to {model.classes - 1}" if model.classes else "no classes"
        raise RecipeError(f"labels: {max(wanted)} is outside the model's range: `{recipe.model}` has {has}")
    if recipe.guidance != 1:
        _check_guidance(model)
    denoiser = model.net
    assert isinstance(denoiser, Denoiser)
    fast_layout(denoiser)
    if kind == "generator":
        sigmas = torch.tensor([model.header["sigma_init"], 0.0], dtype=torch.float64)
    else:
        if solver.sigma_min >= solver.sigma_max:
            raise RecipeError("method.sigma_min: must be below method.sigma_max")
        sigmas = karras(solver.steps, solver.sigma_min, solver.sigma_max, solver.rho)
    return model, guided(denoiser, recipe.guidance), to_times(denoiser.process, sigmas), wanted


def _check_guidance(model: Model) -> None:
    """Raises RecipeError for a model that never learned both denoisers between which guidance extrapolates."""
    if not model.classes:
        raise RecipeError(f"guidance: `{model.name}` is unconditional, there is nothing to guide towards")
    if model.header["kind"] == "generator":
        raise RecipeError(f"guidance: `{model.name}` is a generator, and these are distilled with labels only")
    if model.header.get("label_dropout") == 0:
        raise RecipeError(
            f"guidance: `{model.name}` has always seen its labels", hint="train it with method.label_dropout above 0"
        )


def execute(job: Job) -> Outcome:
    """Draws and writes the samples of a job. Raises GentkError for what the user can mend."""
    recipe, solver = job.recipe, job.recipe.method
    module = importlib.import_module(f"gentk.solvers.{solver.name.replace('-', '_')}")
    where = precision.device(job.device)
    if job.dry_run:
        model, _, grid, _ = _prepare(recipe, where)
        nfe = module.NFE(len(grid) - 1) * calls(recipe.guidance)
        return Outcome("planned", answer=f"{recipe.n} samples of shape {model.shape}, {nfe} NFE each, in {job.out}")
    made_from = inputs.digests({recipe.model: model_path(recipe.model)})
    with Run(inputs.renewed(job, made_from)) as run:
        if run.done is None:
            run.update(inputs=made_from)
            with listening() as stop:
                stop.anywhere = True  # nothing is kept before the end: it can be done again
                _work(run, module, where)
    return run.outcome()


def _work(run: Run, module: ModuleType, where: torch.device) -> None:
    recipe = run.job.recipe
    model, denoise, grid, wanted = _prepare(recipe, where)
    assert isinstance(model.net, Denoiser)
    begun, parts = time.perf_counter(), []
    batches = draw(
        denoise,
        model.net.process,
        module.solve,
        grid,
        shape=model.shape,
        cycle=wanted,
        seed=recipe.seed,
        n=recipe.n,
        first=recipe.first,
        batch=recipe.batch,
        where=where,
    )
    with Progress(recipe.n, 1, quiet=run.job.quiet) as progress:
        done = 0
        for part in batches:
            if not bool(torch.isfinite(part).all()):
                raise RunFailed(f"samples {recipe.first + done} and on: not finite", hint="the model has diverged")
            parts.append(part)
            done += len(part)
            progress.update(done, {})
    seconds = time.perf_counter() - begun
    samples = torch.cat(parts)
    _write(run.folder, samples, labels(recipe.first, recipe.n, wanted), recipe)
    nfe = module.NFE(len(grid) - 1) * calls(recipe.guidance)
    run.update(metrics={"n": recipe.n, "nfe": nfe, "ms_per_sample": 1000 * seconds / recipe.n}, model=model.name)


def _write(folder: Path, samples: Tensor, y: Tensor | None, recipe: Any) -> None:
    """The files that `save` asks for: images as bytes by EDM's rule, points as they are."""
    image = samples.dim() == 4
    values = to_uint8(samples) if image else samples
    if "npz" in recipe.save:
        arrays = {"samples": values.numpy()} | ({} if y is None else {"labels": y.numpy()})
        temporary = folder / ".samples.npz.tmp"
        with temporary.open("wb") as f:
            np.savez(f, **arrays)  # type: ignore[arg-type]
        temporary.replace(folder / "samples.npz")
    if "grid" in recipe.save:
        pictures.save(picture({"samples": samples[:_IN_GRID]}), folder / "samples" / "grid.png")
    if "png" in recipe.save:
        if not image:
            raise RecipeError("save: points have no PNG form", hint="--set save='[npz]'")
        (folder / "png").mkdir(exist_ok=True)
        for k, one in enumerate(values.permute(0, 2, 3, 1).numpy(), start=recipe.first):
            Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one).save(folder / "png" / f"{k:06d}.png")
