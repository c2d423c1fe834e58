"""The torch side of the Markov chains: target, chains, what they tell about themselves, files."""

from __future__ import annotations

import functools
import importlib
import math
import time
from typing import Any

import torch
from torch import Tensor

from gentk import targets
from gentk.engine import pictures, precision, rng
from gentk.engine.generative import picture
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import RecipeError
from gentk.metrics.chains import effective_sample_size, split_r_hat
from gentk.solvers import chains
from gentk.tasks.sample._files import write

_FIELDS = ("nfe", "first", "labels", "guidance", "guidance_interval", "threshold")
_SHOWN = 2000  # points in the picture


def _target(recipe: Any) -> targets.Target:
    kind, _, name = recipe.model.partition(":")
    if kind != "targets":
        raise RecipeError(
            f"`{recipe.model}` is not a density; `{recipe.method.name}` samples targets:NAME",
            hint=f"gentk sample heun --model {recipe.model}, or one of targets:{', targets:'.join(targets.names())}",
        )
    target = targets.find(name)
    if target.log_prob is None:
        target.score(torch.zeros(1, 2))  # says which targets have a log-density
    for field in _FIELDS:
        if getattr(recipe, field) != type(recipe).model_fields[field].default:
            raise RecipeError(f"{field}: means nothing to `{recipe.method.name}`, which samples a density")
    if "png" in recipe.save:
        raise RecipeError("save: points have no PNG form", hint="--set save='[npz]'")
    return target


def execute(job: Job) -> Outcome:
    """Runs the chains of a job and writes their draws. Raises GentkError for what the user can mend."""
    recipe, config, where = job.recipe, job.recipe.method, precision.device(job.device)
    target = _target(recipe)
    draws = math.ceil(recipe.n / config.chains)
    if job.dry_run:
        total = config.warmup + draws * config.thin
        return Outcome(
            "planned", answer=f"{config.chains} chains of {total} transitions on {recipe.model}, in {job.out}"
        )
    with Run(job) as run:
        if run.done is None:
            run.update(inputs={})
            with listening() as stop:
                stop.anywhere = True  # nothing is kept before the end: it can be done again
                _work(run, target, draws, where)
    return run.outcome()


def _work(run: Run, target: targets.Target, draws: int, where: torch.device) -> None:
    recipe, config = run.job.recipe, run.job.recipe.method
    module = importlib.import_module(f"gentk.solvers.{config.name}")
    own = {"steps": config.steps} if hasattr(config, "steps") else {}
    x = config.start * rng.noise(recipe.seed, 0, config.chains, (2,), purpose="start").to(where)
    assert target.log_prob is not None
    begun = time.perf_counter()
    with Progress(config.warmup + draws * config.thin, config.chains, quiet=run.job.quiet) as progress:
        result = chains.run(
            functools.partial(module.step, **own),
            target.log_prob,
            x,
            rng.streams(recipe.seed, 0, config.chains, purpose="chain"),
            draws=draws,
            step_size=config.step_size,
            warmup=config.warmup,
            thin=config.thin,
            target_accept=getattr(config, "target_accept", None),
            each=progress.update,
        )
    seconds = time.perf_counter() - begun
    assert result.draws is not None
    samples = result.draws.reshape(-1, 2)[: recipe.n].cpu()
    figures = _figures(result, draws, config) | {"ms_per_sample": 1000 * seconds / recipe.n, "n": float(recipe.n)}
    write(run, samples, None, {"figures": figures})
    if "grid" in recipe.save:
        exact = target.sample(min(recipe.n, _SHOWN), rng.generator(recipe.seed, "exact"))
        shown = picture({config.name: samples[:_SHOWN], "exact": exact})
        pictures.save(shown, run.folder / "samples" / "grid.png")
    run.update(metrics=figures)


def _figures(result: chains.Result, draws: int, config: Any) -> dict[str, float]:
    """What the chains say about themselves; the worst coordinate counts."""
    figures = {"step_size": result.step_size, "divergences": float(result.divergences)}
    if config.name != "ula":  # which accepts everything
        figures["acceptance"] = result.acceptance
    if draws >= 8:  # fewer say nothing
        kept: Tensor = result.draws.double()  # type: ignore[union-attr]
        figures["ess"] = float(effective_sample_size(kept).min())
        figures["r_hat"] = float(split_r_hat(kept).max())
    return figures
