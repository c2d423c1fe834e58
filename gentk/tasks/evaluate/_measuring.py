"""The torch side of `evaluate fd`: where the samples come from, and their figures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentk import data
from gentk.engine import precision
from gentk.engine.generative import Judge, Sampler, picture, rounded
from gentk.engine.run import Job, Outcome, Run, read_info
from gentk.errors import MissingAsset, RecipeError
from gentk.metrics.frechet import frechet
from gentk.metrics.intervals import disjoint_blocks
from gentk.metrics.neighbours import neighbourhoods
from gentk.metrics.quality import all_of, halves, moments, quality
from gentk.processes.denoiser import Denoiser
from gentk.processes.energies import load_denoiser
from gentk.processes.models import fast_layout
from gentk.recipe.store import model_path
from gentk.tasks.evaluate._recording import Finding, Values, record
from gentk.tasks.evaluate._sources import of_folder, of_npz

_BLOCKS = 10  # behind the distance's standard error


def execute(job: Job) -> Outcome:
    """Measures and writes the figures of a job. Raises GentkError for what the user can mend."""
    recipe, where = job.recipe, precision.device(job.device)
    if job.dry_run:
        _prepare(recipe, where)
        return Outcome(
            "planned", answer=f"{recipe.method.name} of {recipe.samples} against {recipe.reference.name}, in {job.out}"
        )
    files, features = {recipe.samples: _located(recipe.samples)}, recipe.method.features
    if features != "identity":
        files[features] = model_path(features)
    return record(job, files, lambda run: _measure(run, where))


def _measure(run: Run, where: torch.device) -> Finding:
    recipe, config = run.job.recipe, run.job.recipe.method
    judge, source = _prepare(recipe, where)
    timed: dict[str, float] = {}
    if isinstance(source, Tensor):
        samples = source
    else:
        begun = time.perf_counter()
        samples = rounded(source(config.n, recipe.seed, batch=config.batch))
        timed = {"nfe": float(source.nfe), "ms_per_sample": 1000 * (time.perf_counter() - begun) / config.n}
    figures = quality(samples, judge.train, judge.test, judge.extract, k=config.k)
    features, real = judge.extract(samples), moments(judge.extract(all_of(judge.train)))
    counts = f"N = {len(samples)} against {len(judge.train)}"
    notes, errors, values = {}, {}, {}
    if len(samples) >= 2 * _BLOCKS:
        blocks = disjoint_blocks(lambda chosen: frechet(real, moments(features[chosen])), len(samples), count=_BLOCKS)
        notes["fd"] = f" +- {blocks.error:.2g} (standard error by {_BLOCKS} blocks)"
        errors["fd_error"] = blocks.error
        values["fd"] = Values("block", torch.tensor(blocks.values, dtype=torch.float64))
    lines = [f"{name} {value:.4g}{notes.get(name, '')}, {counts}" for name, value in figures.items()]
    within = neighbourhoods(judge.extract(all_of(judge.train)), features, config.k, border=True)
    values |= {name: Values("sample", getattr(within, name)) for name in ("precision", "recall")}
    inputs = run.info["inputs"]
    train = all_of(judge.train)[: len(samples)]
    return Finding(
        figures | errors | {"fd_halves": halves(judge.train, judge.test, judge.extract)} | timed,
        lines,
        len(samples),
        len(judge.train),
        comparable={
            "features": {"name": config.features, "sha256": inputs.get(config.features)},
            "reference": recipe.reference.name,
            "n": len(samples),
            "k": config.k,
        },
        facts={"samples": {"name": recipe.samples}},
        values=values,
        pictures={"samples": picture({"samples": samples[:100], "training data": train[:100]})},
    )


def _prepare(recipe: Any, where: torch.device) -> tuple[Judge, Tensor | Sampler]:
    """What measures, and what is measured: samples from disk, or the sampler that will draw them."""
    train, test = data.load(recipe.reference, "train"), data.load(recipe.reference, "test")
    judge = Judge(recipe.method.measure, train, test, where)
    drawn = _stored(_located(recipe.samples))
    if drawn is None:
        return judge, _sampler(recipe, train.shape, where)
    if tuple(drawn.shape[1:]) != train.shape:
        have = tuple(drawn.shape[1:])
        raise RecipeError(f"{recipe.samples}: samples have shape {have}, `{recipe.reference.name}` has {train.shape}")
    return judge, drawn


def _sampler(recipe: Any, shape: tuple[int, ...], where: torch.device) -> Sampler:
    model = load_denoiser(recipe.samples, kinds=("denoiser", "generator"), where=where)
    if model.shape != shape:
        raise RecipeError(
            f"`{recipe.samples}` makes samples of shape {model.shape}, `{recipe.reference.name}` has {shape}"
        )
    assert isinstance(model.net, Denoiser)
    fast_layout(model.net)
    cycle, once = tuple(range(model.classes)), model.header.get("sigma_init")
    return Sampler(model.net, shape, cycle, where, recipe.method.steps, once)


def _located(ref: str) -> Path:
    """What `ref` means: an .npz file, a folder of pictures, or the weights of a model."""
    path = Path(ref)
    if path.is_dir() and (path / "samples.npz").is_file():
        return path / "samples.npz"
    if path.suffix == ".npz":
        if not path.is_file():
            raise MissingAsset(f"{path}: no such file", hint="gentk sample writes samples.npz into its run folder")
        return path
    info = read_info(path)
    if info is not None and info.get("task") == "sample":
        raise MissingAsset(
            f"{path}: a sample run without samples.npz", hint="sample again with npz among `save`, to the end"
        )
    if path.is_dir() and not (path / "export").is_dir() and info is None:
        return path
    return model_path(ref)


def _stored(path: Path) -> Tensor | None:
    """Samples that lie on disk, as the data sets give them; None when `path` is a model."""
    if path.suffix == ".npz":
        x = of_npz(path).all()
    elif path.is_dir():
        x = of_folder(path).all()
    else:
        return None
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x
