"""The torch side of scores of single images, with a partner, with a prompt, or alone: one figure each, and the mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentk.engine import inputs, precision
from gentk.engine.log import json_text
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.metrics.intervals import bootstrap
from gentk.recipe.registry import method_module
from gentk.recipe.stamp import versions
from gentk.tasks.evaluate._reference import images_of, samples_of
from gentk.tasks.evaluate._sources import Source


@dataclass(frozen=True)
class Scorer:
    """`score(images, partners, prompts)`: uint8 (B, C, H, W), the same or None, B prompts or None -> (B,)."""

    score: Callable[[Tensor, Any, Any], Tensor]
    facts: dict[str, Any]


def in_colour(x: Tensor) -> Tensor:
    """Grey images with their channel three times, for networks of RGB images."""
    return x.expand(-1, 3, -1, -1)


def execute(job: Job) -> Outcome:
    """Scores and writes the figures of a job. Raises GentkError for what the user can mend."""
    recipe, where = job.recipe, precision.device(job.device)
    module = method_module("evaluate", recipe.method.name)
    prompts = _prompts(recipe.method) if module.NEEDS == "prompts" else None
    source, files = samples_of(recipe, where)
    partners = _partners(recipe, source) if module.NEEDS == "pairs" else None
    if prompts is not None and len(prompts) != source.n:
        raise RecipeError(
            f"method.prompts: {len(prompts)} prompts (with method.per_prompt) for {source.n} images",
            hint="one for each image in order; method.per_prompt says how many images share one",
        )
    scorer = module.scorer(recipe.method, where, recipe.seed)
    if job.dry_run:
        return Outcome("planned", answer=f"{recipe.method.name} of {source.n} images, in {job.out}")
    if prompts is not None:
        files[recipe.method.prompts] = Path(recipe.method.prompts).expanduser()
    made_from = inputs.digests(files)
    with Run(inputs.renewed(job, made_from)) as run:
        if run.done is None:
            run.update(inputs=made_from)
            with listening() as stop:
                stop.anywhere = True  # nothing is kept before the end: it can be done again
                _work(run, scorer, source, partners, prompts)
    outcome = run.outcome()
    answer = (run.folder / "answer.txt").read_text("utf-8").rstrip()
    return Outcome(outcome.status, outcome.metrics, outcome.run, outcome.seconds, answer=answer)


def _partners(recipe: Any, source: Source) -> Source:
    """The reference images, one for each sample, in the same order."""
    partners = images_of(recipe)
    if partners.n != source.n or partners.shape != source.shape:
        raise RecipeError(
            f"reference: {partners.n} images of shape {partners.shape} for {source.n} of shape {source.shape}",
            hint="pairs are made by order: give as many images of the same size on both sides",
        )
    return partners


def _prompts(config: Any) -> list[str]:
    """Every prompt, `per_prompt` times. Raises MissingAsset and GentkError, naming the line."""
    if config.prompts is None:
        raise RecipeError(f"`{config.name}` needs prompts", hint="--set method.prompts=FILE")
    path = Path(config.prompts).expanduser()
    if not path.is_file():
        raise MissingAsset(f"{path}: no such file", hint=".txt, .json or .jsonl with one prompt for each image")
    try:
        text = path.read_text("utf-8")
        match path.suffix:
            case ".json":
                found = [record["prompt"] for record in json.loads(text)]
            case ".jsonl":
                found = [json.loads(line)["prompt"] for line in text.splitlines() if line.strip()]
            case _:
                found = [line.strip() for line in text.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError) as e:
        raise GentkError(f"{path}: cannot be read as prompts: {e}", hint="records with a key `prompt`") from e
    return [prompt for prompt in found for _ in range(config.per_prompt)]


def _work(run: Run, scorer: Scorer, source: Source, partners: Source | None, prompts: list[str] | None) -> None:
    config, name = run.job.recipe.method, run.job.recipe.method.name.replace("-", "_")
    values = torch.empty(source.n, dtype=torch.float64)
    others = partners.batches(0, config.batch) if partners else None
    done = 0
    with Progress(source.n, 1, quiet=run.job.quiet) as progress:
        for part in source.batches(0, config.batch):
            end = done + len(part)
            partner = next(others) if others else None
            values[done:end] = scorer.score(part, partner, prompts[done:end] if prompts else None).double().cpu()
            done = end
            progress.update(done, {})
    with (run.folder / "scores.npz").open("wb") as file:
        np.savez(file, scores=values.numpy())
    figures = {name: float(values.mean()), f"{name}_std": float(values.std())}
    line = f"{name} {figures[name]:.4g}"
    finite = values[values.isfinite()]
    if len(finite) < len(values):  # PSNR of equal images
        line += f" ({len(values) - len(finite)} of {len(values)} are infinite)"
    elif len(values) > 1:
        found = bootstrap(values, resamples=config.resamples, seed=run.job.recipe.seed)
        line += f" [{found.low:.4g}, {found.high:.4g}] (95 %, bootstrap)"
        figures |= {f"{name}_low": found.low, f"{name}_high": found.high}
    line += f", N = {source.n}"
    result = {
        "figures": figures,
        "n": source.n,
        "samples": {"name": source.name} | source.facts,
        "score": scorer.facts,
        "inputs": run.info["inputs"],
        "seed": run.job.recipe.seed,
        "versions": versions(),
    }
    (run.folder / "result.json").write_text(json_text(result, indent=1), encoding="utf-8")
    (run.folder / "answer.txt").write_text(line + "\n", encoding="utf-8")
    run.update(metrics=figures | {"n": float(source.n)})
