"""The torch side of `evaluate fd`: where the samples come from, and their figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentk import data
from gentk.engine import precision
from gentk.engine.generative import Judge, Sampler
from gentk.engine.run import Job, Outcome, Run
from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.metrics.quality import halves, quality
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import fast_layout, load
from gentk.recipe.schema import Data


def execute(job: Job) -> Outcome:
    """Measures and writes the figures of a job. Raises GentkError for what the user can mend."""
    recipe, where = job.recipe, precision.device(job.device)
    if job.dry_run:
        _prepare(recipe, where)
        return Outcome(
            "planned", answer=f"{recipe.method.name} of {recipe.samples} against {recipe.reference.name}, in {job.out}"
        )
    with Run(job) as run:
        if run.done is not None:
            return run.outcome()
        judge, source = _prepare(recipe, where)
        if isinstance(source, Tensor):
            figures = quality(source, judge.train, judge.test, judge.extract, k=recipe.method.k)
            figures["n"] = float(len(source))
        else:
            figures = judge(source, recipe.seed) | {"n": float(recipe.method.n)}
        figures["fd_halves"] = halves(judge.train, judge.test, judge.extract)
        run.update(metrics=figures)
    return run.outcome()


def _prepare(recipe: Any, where: torch.device) -> tuple[Judge, Tensor | Sampler]:
    """What measures, and what is measured: samples from disk, or the sampler that will draw them."""
    train, test = data.load(recipe.reference, "train"), data.load(recipe.reference, "test")
    judge = Judge(recipe.method.measure, train, test, where)
    drawn = _stored(recipe.samples)
    if drawn is None:
        return judge, _sampler(recipe, train.shape, where)
    if tuple(drawn.shape[1:]) != train.shape:
        have = tuple(drawn.shape[1:])
        raise RecipeError(f"{recipe.samples}: samples have shape {have}, `{recipe.reference.name}` has {train.shape}")
    return judge, drawn


def _sampler(recipe: Any, shape: tuple[int, ...], where: torch.device) -> Sampler:
    model = load(recipe.samples, kinds=("denoiser", "generator"), where=where)
    if model.shape != shape:
        raise RecipeError(
            f"`{recipe.samples}` makes samples of shape {model.shape}, `{recipe.reference.name}` has {shape}"
        )
    assert isinstance(model.net, Denoiser)
    fast_layout(model.net)
    cycle, once = tuple(range(model.classes)), model.header.get("sigma_init")
    return Sampler(model.net, shape, cycle, where, recipe.method.steps, once)


def _stored(ref: str) -> Tensor | None:
    """Samples that lie on disk, as the data sets give them; None when `ref` names a model."""
    path = Path(ref)
    if path.is_dir() and (path / "samples.npz").is_file():
        path = path / "samples.npz"
    if path.suffix == ".npz":
        return _from_npz(path)
    if path.is_dir() and not (path / "export").is_dir() and not (path / "run.json").is_file():
        parts = [data.load(Data(name=f"images:{path}"), split) for split in ("train", "test")]
        return torch.cat([part.batch(torch.arange(len(part)))[0] for part in parts])
    return None


def _from_npz(path: Path) -> Tensor:
    if not path.is_file():
        raise MissingAsset(f"{path}: no such file", hint="gentk sample writes samples.npz into its run folder")
    try:
        with np.load(path, allow_pickle=False) as f:  # no code of the file runs
            values = f["samples"]
    except (OSError, ValueError, KeyError) as e:
        raise GentkError(f"{path}: not an .npz file with an array `samples`: {e}") from e
    x = torch.from_numpy(values)
    if x.dtype == torch.uint8 and x.dim() == 4:
        return x.float() / 127.5 - 1
    if x.dtype in (torch.float32, torch.float64) and x.dim() == 2:
        if not bool(torch.isfinite(x).all()):
            raise GentkError(f"{path}: the samples are not all finite")
        return x.float()
    raise GentkError(
        f"{path}: `samples` is {x.dtype} of shape {tuple(x.shape)}",
        hint="expected uint8 (N, C, H, W) or float32 (N, D)",
    )
