"""The torch side of `evaluate ood`: energies of the data and of other samples, and how far the two are apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from gentk import data
from gentk.engine import pictures, precision, rng
from gentk.engine.run import Job, Outcome, Run
from gentk.errors import RecipeError, did_you_mean
from gentk.metrics.auroc import auroc
from gentk.nets import published_energy
from gentk.processes.energies import load_energy
from gentk.processes.models import Model
from gentk.recipe.schema import Data
from gentk.recipe.store import model_path
from gentk.tasks.evaluate._recording import Finding, Values, record

_MADE = ("upside-down", "mirrored", "noisy", "uniform", "constant")


def execute(job: Job) -> Outcome:
    """Scores and writes the figures of a job. Raises GentkError for what the user can mend."""
    recipe, where = job.recipe, precision.device(job.device)
    for name in recipe.method.against:
        if name not in _MADE and not name.startswith("data:"):
            close = did_you_mean(name, _MADE)
            raise RecipeError(f"method.against: unknown `{name}`{close}", hint=f"{', '.join(_MADE)} or data:NAME:SPLIT")
    model = load_energy(recipe.samples, where)
    if recipe.method.level is not None and not model.header["levels"]:
        raise RecipeError(f"method.level: `{recipe.samples}` is a static energy", hint="leave it out")
    if recipe.method.added and recipe.method.level is None:
        raise RecipeError("method.added: noise of which level?", hint="--set method.level=0.1")
    inside = _part(recipe.reference, recipe.split, recipe, model)
    if job.dry_run:
        return Outcome("planned", answer=f"{len(inside)} samples each, in {job.out}")
    files: dict[str, Path] = {}
    if recipe.samples not in published_energy.NAMES:
        files[recipe.samples] = model_path(recipe.samples)
    return record(job, files, lambda run: _measure(run, model, inside, where))


def _part(section: Data, split: data.Split, recipe: Any, model: Model) -> Tensor:
    """The first n samples of a split (n, *shape). Raises RecipeError where the energy does not take them."""
    own = data.load(section, split)
    if own.shape != model.shape:
        raise RecipeError(f"`{section.name}` has samples of shape {own.shape}, `{model.name}` takes {model.shape}")
    return own.batch(torch.arange(min(recipe.method.n, len(own))))[0]


def _other(name: str, inside: Tensor, recipe: Any, model: Model) -> Tensor:
    if name.startswith("data:"):
        what, _, split = name.removeprefix("data:").rpartition(":")
        if split not in ("train", "test"):
            raise RecipeError(f"method.against: `{name}` names no split", hint=f"{name}:test")
        return _part(Data(name=what, root=recipe.reference.root), split, recipe, model)  # type: ignore[arg-type]
    gen, image = rng.generator(recipe.seed, "outliers", name), inside.dim() == 4
    if name in ("upside-down", "mirrored") and not image:
        raise RecipeError(f"method.against: `{name}` is for images")
    match name:
        case "upside-down":
            return inside.flip(2)
        case "mirrored":
            return inside.flip(3)
        case "noisy":
            noisy: Tensor = inside + recipe.method.noise * torch.randn(inside.shape, generator=gen)
            return noisy.clamp(-1, 1) if image else noisy
        case "uniform":
            low, high = (-1.0, 1.0) if image else (inside.amin(0), inside.amax(0))
            uniform: Tensor = low + (high - low) * torch.rand(inside.shape, generator=gen)
            return uniform
        case _:  # constant: each sample its own grey
            grey: Tensor = 2 * torch.rand(len(inside), *(1,) * (inside.dim() - 1), generator=gen) - 1
            return grey.expand_as(inside)


@torch.no_grad()  # a measurement
def _scores(model: Model, x: Tensor, recipe: Any, where: torch.device) -> Tensor:
    """Energies (N,) float64 on the CPU."""
    config = recipe.method
    if config.added:
        x = x + config.level * rng.noise(recipe.seed, 0, len(x), tuple(x.shape[1:]), purpose="level")
    found = []
    for part in torch.split(x, config.batch):
        y = part.to(where)
        found.append((model.net(y) if config.level is None else model.net(y, config.level)).double().cpu())
    return torch.cat(found)


def _measure(run: Run, model: Model, inside: Tensor, where: torch.device) -> Finding:
    recipe, config = run.job.recipe, run.job.recipe.method
    scores = {"data": _scores(model, inside, recipe, where)}
    figures, lines = {"energy_data": float(scores["data"].mean())}, []
    for name in config.against:
        others = _other(name, inside, recipe, model)
        scores[name] = _scores(model, others, recipe, where)
        found = auroc(scores["data"], scores[name])
        key = name.removeprefix("data:").replace(":", "_").replace("-", "_")
        figures |= {
            f"auroc_{key}": found.area,
            f"auroc_{key}_low": found.low,
            f"auroc_{key}_high": found.high,
            f"energy_{key}": float(scores[name].mean()),
        }
        interval = f"[{found.low:.4g}, {found.high:.4g}] (95 %, DeLong)"
        lines.append(f"auroc {found.area:.4g} {interval} against {name}, N = {len(inside)} and {len(others)}")
    return Finding(
        figures,
        lines,
        len(inside),
        comparable={
            "reference": {"name": recipe.reference.name, "split": recipe.split},
            "against": list(config.against),
            "n": config.n,
            "noise": config.noise,
            "level": config.level,
            "added": config.added,
        },
        facts={"samples": {"name": recipe.samples}},
        values={"energy_data": Values("sample", scores["data"])},
        pictures={"energies": _histogram(scores)},
    )


def _histogram(scores: dict[str, Tensor]) -> Image:
    every = torch.cat(list(scores.values()))
    low, high = float(every.quantile(0.005)), float(every.quantile(0.995))

    def draw(axes: Any) -> None:
        for name, values in scores.items():
            shown = values.clamp(low, high).numpy()
            axes.hist(shown, bins=60, range=(low, high), alpha=0.55, label=name, density=True)
        axes.legend(fontsize=8, frameon=False)
        axes.set(title="energies: low where the model expects samples", xlabel="energy", yscale="log")

    return pictures.chart(draw, width=640)
