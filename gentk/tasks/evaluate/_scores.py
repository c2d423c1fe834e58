"""The torch side of scores of single images, with a partner, with a prompt, or alone: one figure each, and the mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from gentk.engine import pictures, precision
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run
from gentk.errors import RecipeError
from gentk.metrics.intervals import bootstrap
from gentk.recipe.prompts import of_file
from gentk.recipe.registry import method_module
from gentk.tasks.evaluate._recording import Finding, Values, record
from gentk.tasks.evaluate._reference import folder_of, images_of, samples_of
from gentk.tasks.evaluate._sources import Source

_SHOWN = 8  # images at each end


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
    config = recipe.method
    if module.NEEDS == "prompts" and config.prompts is None and (place := _beside(recipe.samples)) is not None:
        config = config.model_copy(update={"prompts": str(place), "per_prompt": 1})
    prompts = _prompts(config) if module.NEEDS == "prompts" else None
    source, files = samples_of(recipe, where)
    partners = _partners(recipe, source) if module.NEEDS == "pairs" else None
    if prompts is not None and len(prompts) != source.n:
        raise RecipeError(
            f"{config.prompts}: {len(prompts)} prompts (with method.per_prompt) for {source.n} images",
            hint="one for each image in order; method.per_prompt says how many images share one",
        )
    scorer = module.scorer(recipe.method, where, recipe.seed)
    if job.dry_run:
        return Outcome("planned", answer=f"{recipe.method.name} of {source.n} images, in {job.out}")
    if prompts is not None:
        files[config.prompts] = Path(config.prompts).expanduser()
    if partners is not None and (folder := folder_of(recipe)) is not None:
        files[recipe.reference.name] = folder
    return record(job, files, lambda run: _score(run, config, scorer, source, partners, prompts))


def _partners(recipe: Any, source: Source) -> Source:
    """The reference images, one for each sample, in the same order."""
    partners = images_of(recipe)
    if partners.n != source.n or partners.shape != source.shape:
        raise RecipeError(
            f"reference: {partners.n} images of shape {partners.shape} for {source.n} of shape {source.shape}",
            hint="pairs are made by order: give as many images of the same size on both sides",
        )
    return partners


def _beside(samples: str) -> Path | None:
    """The prompts that a run of a text-to-image model keeps beside its images, one for each."""
    place = Path(samples).expanduser() / "prompts.jsonl"
    return place if place.is_file() else None


def _prompts(config: Any) -> list[str]:
    """Every prompt, `per_prompt` times. Raises as `of_file`, naming the line."""
    if config.prompts is None:
        raise RecipeError(f"`{config.name}` needs prompts", hint="--prompts FILE, one for each image")
    found = of_file(Path(config.prompts).expanduser())
    return [record.text for record in found for _ in range(config.per_prompt)]


def _score(
    run: Run, config: Any, scorer: Scorer, source: Source, partners: Source | None, prompts: list[str] | None
) -> Finding:
    recipe, name = run.job.recipe, config.name.replace("-", "_")
    values = torch.empty(source.n, dtype=torch.float64)
    others = partners.batches(0, config.batch) if partners else None
    ends, done = _Ends(), 0
    with Progress(source.n, 1, quiet=run.job.quiet) as progress:
        for part in source.batches(0, config.batch):
            end = done + len(part)
            partner = next(others) if others else None
            values[done:end] = scorer.score(part, partner, prompts[done:end] if prompts else None).double().cpu()
            ends.take(values[done:end], part)
            done = end
            progress.update(done, {})
    figures = {name: float(values.mean()), f"{name}_std": float(values.std())}
    line = f"{name} {figures[name]:.4g}"
    finite = values[values.isfinite()]
    if len(finite) < len(values):  # PSNR of equal images
        line += f" ({len(values) - len(finite)} of {len(values)} are infinite)"
    elif len(values) > 1:
        found = bootstrap(values, resamples=config.resamples, seed=recipe.seed)
        line += f" [{found.low:.4g}, {found.high:.4g}] (95 %, bootstrap)"
        figures |= {f"{name}_low": found.low, f"{name}_high": found.high}
    against = None if partners is None else {"name": recipe.reference.name, "split": recipe.split}
    asked = None if prompts is None else {"sha256": run.info["inputs"][config.prompts], "per_prompt": config.per_prompt}
    return Finding(
        figures,
        [f"{line}, N = {source.n}"],
        source.n,
        comparable={"score": scorer.facts, "reference": against, "prompts": asked, "n": source.n},
        facts={"samples": {"name": source.name} | source.facts},
        values={name: Values("sample", values)},
        pictures={name: _histogram(finite, name)} | ends.pictures(),
    )


class _Ends:
    """The images of the lowest and the highest scores among those that were taken in."""

    def __init__(self) -> None:
        self.low: tuple[Tensor, Tensor] | None = None
        self.high: tuple[Tensor, Tensor] | None = None

    def take(self, values: Tensor, images: Tensor) -> None:
        """Scores (B,) and their images (B, ...)."""
        self.low = _kept(self.low, values, images, descending=False)
        self.high = _kept(self.high, values, images, descending=True)

    def pictures(self) -> dict[str, Image]:
        """Both, the most extreme first."""
        both = {"lowest": self.low, "highest": self.high}
        return {name: pictures.grid(kept[1], columns=_SHOWN) for name, kept in both.items() if kept is not None}


def _kept(
    before: tuple[Tensor, Tensor] | None, values: Tensor, images: Tensor, *, descending: bool
) -> tuple[Tensor, Tensor]:
    if before is not None:
        values, images = torch.cat([before[0], values]), torch.cat([before[1], images])
    order = values.argsort(descending=descending, stable=True)[:_SHOWN]
    return values[order].clone(), images[order].clone()


def _histogram(values: Tensor, name: str) -> Image:
    def draw(axes: Any) -> None:
        axes.hist(values.numpy(), bins=40, color=pictures.INK)
        axes.set(title=f"{name} of {len(values)} images", xlabel=name)

    return pictures.chart(draw)
