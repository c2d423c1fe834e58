"""The torch side of what time-dependent energies are drawn from and denoised by."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import torch
from torch import Tensor

from gentk import data
from gentk.data import to_uint8
from gentk.engine import inputs, pictures, precision, ranks, rng
from gentk.engine.draw import batches, starts
from gentk.engine.energetic import ladder, mode, tweedie
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import RecipeError, RunFailed
from gentk.metrics.denoising import mean_psnr
from gentk.nets.energy import Energy
from gentk.processes.energies import load_energy
from gentk.processes.models import Model, fast_layout
from gentk.recipe.store import model_path
from gentk.solvers import annealed_langevin
from gentk.tasks.sample._files import write

_FIELDS = ("nfe", "labels", "guidance", "guidance_interval", "threshold")
_SHOWN = 36  # images in each panel


def execute(job: Job) -> Outcome:
    """Draws or denoises, and writes what came out. Raises GentkError for what the user can mend."""
    recipe, config, where = job.recipe, job.recipe.method, precision.device(job.device)
    model = _model(recipe, where)
    if config.name == "denoise":
        clean = _images(recipe, model)
        plan = f"{len(clean)} images of {config.data.name} with noise of {config.sigma:g}, denoised"
    else:
        plan = f"{recipe.n} chains of {config.levels * config.steps} transitions on `{recipe.model}`"
    if job.dry_run:
        return Outcome("planned", answer=f"{plan}, in {job.out}")
    made_from = inputs.digests({recipe.model: model_path(recipe.model)})
    with ranks.opened(inputs.renewed(job, made_from)) as run:
        if run.done is None:
            run.update(inputs=made_from, model=recipe.model)
            with listening() as stop:
                stop.anywhere = True  # nothing is kept before the end: it can be done again
                if config.name == "denoise":
                    ranks.by_first(lambda: _denoise(run, model, clean, where))
                else:
                    ranks.by_first(lambda: _draw(run, model, where))
    return run.outcome()


def _model(recipe: Any, where: torch.device) -> Model:
    """The energy. Raises RecipeError for one that the method cannot use, and for settings that mean nothing here."""
    config = recipe.method
    if recipe.model.startswith("targets:"):
        raise RecipeError(f"`{recipe.model}` has no noise levels", hint=f"gentk sample hmc --model {recipe.model}")
    model = load_energy(recipe.model, where)
    for field in _FIELDS:
        if getattr(recipe, field) != type(recipe).model_fields[field].default:
            raise RecipeError(f"{field}: means nothing to `{config.name}`, which follows an energy")
    if not isinstance(model.net, Energy) or (model.net.levels is None and getattr(config, "by", "") != "mode"):
        other = "--set method.by=mode" if config.name == "denoise" else f"gentk sample mala --model {recipe.model}"
        raise RecipeError(f"`{recipe.model}` is a static energy, it has no noise levels", hint=other)
    if "png" in recipe.save and len(model.shape) != 3:
        raise RecipeError("save: points have no PNG form", hint="--set save='[npz]'")
    fast_layout(model.net)
    return model


def _images(recipe: Any, model: Model) -> Tensor:
    config, energy = recipe.method, model.net
    own = data.load(config.data, config.split)
    if own.shape != model.shape or own.kind != "image":
        raise RecipeError(f"method.data: samples of shape {own.shape}, the energy is of {model.shape}")
    if config.by == "mean":
        low, high = energy.levels  # type: ignore[misc]
        if not low / 2 <= config.sigma <= high:
            raise RecipeError(
                f"method.sigma: {config.sigma:g} is outside the energy's noise levels, {low:g} to {high:g}"
            )
    last = recipe.first + recipe.n
    if last > len(own):
        raise RecipeError(f"n: images {recipe.first} to {last - 1} are asked for, there are {len(own)}")
    return own.batch(torch.arange(recipe.first, last))[0]


def _draw(run: Run, model: Model, where: torch.device) -> None:
    recipe, config, energy = run.job.recipe, run.job.recipe.method, model.net
    assert isinstance(energy, Energy)
    assert energy.levels is not None
    levels = ladder(energy.levels, config.levels)
    spread, drawn, begun = math.sqrt(levels[0] ** 2 + float(energy.sd) ** 2), [], time.perf_counter()
    once = len(levels) * config.steps
    each = once * (1 + config.longer)
    with Progress(each * math.ceil(recipe.n / recipe.batch), recipe.batch, quiet=run.job.quiet) as progress:
        for i, (first, count) in enumerate(batches(recipe.first, recipe.n, recipe.batch)):
            x = energy.centre + spread * starts(recipe.seed, first, count, model.shape).to(where)

            def step(done: int, before: int = i * each) -> None:
                progress.update(before + done, {})

            def later(done: int, before: int = i * each + once) -> None:
                progress.update(before + done, {})

            noise = rng.streams(recipe.seed, first, count, purpose="chain")
            walk = functools.partial(annealed_langevin.run, energy.score, noise=noise, step_size=config.step_size)
            x = walk(x, levels=levels, steps=config.steps, clean=config.clean and not config.longer, each=step)
            if config.longer:
                x = walk(x, levels=levels[-1:], steps=config.longer * once, clean=config.clean, each=later)
            if not bool(x.isfinite().all()):
                raise RunFailed(
                    f"samples {first} to {first + count - 1} are not finite", hint="the energy has diverged"
                )
            drawn.append(x.float().cpu())
    seconds, nfe = time.perf_counter() - begun, each + config.clean
    figures = {"n": float(recipe.n), "nfe": float(nfe), "ms_per_sample": 1000 * seconds / recipe.n}
    write(run, torch.cat(drawn), None, {"figures": figures, "noise_levels": levels})
    run.update(metrics=figures)


def _denoise(run: Run, model: Model, clean: Tensor, where: torch.device) -> None:
    recipe, config, energy = run.job.recipe, run.job.recipe.method, model.net
    assert isinstance(energy, Energy)
    noise = rng.noise(recipe.seed, recipe.first, len(clean), model.shape, purpose="denoise")
    noisy = clean + config.sigma * noise
    found, begun = [], time.perf_counter()
    for part in torch.split(noisy, recipe.batch):
        y = part.to(where)
        x = (
            tweedie(energy, y, config.sigma)
            if config.by == "mean"
            else mode(energy, y, config.sigma, steps=config.steps)
        )
        found.append(x.cpu())
    samples = torch.cat(found)
    figures = {
        "n": float(len(clean)),
        "psnr": mean_psnr(samples, clean),
        "psnr_noisy": mean_psnr(noisy, clean),
        "ms_per_sample": 1000 * (time.perf_counter() - begun) / len(clean),
    }
    write(run, samples, None, {"figures": figures})
    panels = {"clean": clean, "noisy": noisy, "denoised": samples}
    shown = pictures.side_by_side({name: to_uint8(x[:_SHOWN].clamp(-1, 1)) for name, x in panels.items()})
    pictures.save(shown, run.folder / "samples" / "denoised.png")
    run.update(metrics=figures)
