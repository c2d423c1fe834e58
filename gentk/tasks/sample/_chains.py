"""The torch side of the Markov chains: target, chains, what they tell about themselves, files."""

from __future__ import annotations

import functools
import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentk import targets
from gentk.engine import inputs, pictures, precision, ranks, rng
from gentk.engine.generative import picture
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import RecipeError
from gentk.metrics.chains import effective_sample_size, split_r_hat
from gentk.nets import published_energy
from gentk.nets.energy import Energy
from gentk.processes.energies import load_energy
from gentk.recipe.stamp import read_header
from gentk.recipe.store import model_path
from gentk.solvers import chains
from gentk.solvers.chains import LogProb
from gentk.tasks.sample._files import write

_FIELDS = ("nfe", "first", "labels", "guidance", "guidance_interval", "threshold")
_SHOWN = 2000  # points in the picture


@dataclass(frozen=True)
class Law:
    """What chains run on: a log-density of samples of `shape`, where they start, and exact draws if anyone has them."""

    log_prob: LogProb
    shape: tuple[int, ...]
    exact: Callable[[int, torch.Generator], Tensor] | None = None
    centre: Tensor | float = 0.0
    spread: float = 1.0
    files: dict[str, Path] = field(default_factory=dict)


def _law(recipe: Any, where: torch.device) -> Law:
    kind, _, name = recipe.model.partition(":")
    if kind == "targets":
        target = targets.find(name)
        if target.log_prob is None:
            target.score(torch.zeros(1, 2))  # says which targets have a log-density
        assert target.log_prob is not None
        law = Law(target.log_prob, (2,), target.sample)
    else:
        law = _energy(recipe, where)
    for name in _FIELDS:
        if getattr(recipe, name) != type(recipe).model_fields[name].default:
            raise RecipeError(f"{name}: means nothing to `{recipe.method.name}`, which samples a density")
    if "png" in recipe.save and len(law.shape) != 3:
        raise RecipeError("save: points have no PNG form", hint="--set save='[npz]'")
    return law


def _energy(recipe: Any, where: torch.device) -> Law:
    """A run of train-ebm, or a published energy; a time-dependent one at its smallest noise level."""
    published = recipe.model in published_energy.NAMES
    files = {} if published else {recipe.model: model_path(recipe.model)}
    for path in files.values():
        if (found := read_header(path)["kind"]) != "energy":
            raise RecipeError(
                f"`{recipe.model}` is not a density but a {found}; `{recipe.method.name}` takes energies, targets:NAME",
                hint=f"gentk sample heun --model {recipe.model}, or targets:{', targets:'.join(targets.names())}",
            )
    model = load_energy(recipe.model, where)
    own = {"centre": model.net.centre, "spread": float(model.net.sd)} if isinstance(model.net, Energy) else {}
    return Law(lambda x: -model.net(x), model.shape, files=files, **own)  # type: ignore[arg-type]


def execute(job: Job) -> Outcome:
    """Runs the chains of a job and writes their draws. Raises GentkError for what the user can mend."""
    recipe, config, where = job.recipe, job.recipe.method, precision.device(job.device)
    law = _law(recipe, where)
    draws = math.ceil(recipe.n / config.chains)
    if job.dry_run:
        total = config.warmup + draws * config.thin
        return Outcome(
            "planned", answer=f"{config.chains} chains of {total} transitions on {recipe.model}, in {job.out}"
        )
    made_from = inputs.digests(law.files)
    with ranks.opened(inputs.renewed(job, made_from)) as run:
        if run.done is None:
            run.update(inputs=made_from)
            with listening() as stop:
                stop.anywhere = True  # nothing is kept before the end: it can be done again
                ranks.by_first(lambda: _work(run, law, draws, where))
    return run.outcome()


def _work(run: Run, law: Law, draws: int, where: torch.device) -> None:
    recipe, config = run.job.recipe, run.job.recipe.method
    module = importlib.import_module(f"gentk.solvers.{config.name}")
    own = {"steps": config.steps} if hasattr(config, "steps") else {}
    x = rng.noise(recipe.seed, 0, config.chains, law.shape, purpose="start").to(where)
    x = law.centre + config.start * law.spread * x
    begun = time.perf_counter()
    with Progress(config.warmup + draws * config.thin, config.chains, quiet=run.job.quiet) as progress:
        result = chains.run(
            functools.partial(module.step, **own),
            law.log_prob,
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
    samples = result.draws.reshape(-1, *law.shape)[: recipe.n].cpu()
    figures = _figures(result, draws, config) | {"ms_per_sample": 1000 * seconds / recipe.n, "n": float(recipe.n)}
    write(run, samples, None, {"figures": figures})
    if "grid" in recipe.save and law.exact is not None:
        exact = law.exact(min(recipe.n, _SHOWN), rng.generator(recipe.seed, "exact"))
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
