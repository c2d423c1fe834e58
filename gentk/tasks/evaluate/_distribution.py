"""The torch side of the measures of two sets of images in one feature space, from one pass over each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentk.engine import inputs, precision
from gentk.engine.log import json_text
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run, read_info
from gentk.engine.stop import listening
from gentk.errors import RecipeError
from gentk.metrics import proxies
from gentk.metrics.fd_infinity import fd_infinity
from gentk.metrics.frechet import Moments, frechet_of, frechet_to
from gentk.metrics.intervals import disjoint_blocks
from gentk.metrics.kernel import kid
from gentk.metrics.neighbours import prdc
from gentk.recipe.registry import method_module
from gentk.recipe.schema import Data
from gentk.recipe.stamp import versions
from gentk.recipe.store import model_path
from gentk.tasks.evaluate import _sources
from gentk.tasks.evaluate._features import extract
from gentk.tasks.evaluate._sources import Source

_DRAWN = 10_000  # samples of a model, where nothing else is asked for
_FEW = 10_000  # below this many a Frechet distance is mostly bias
_ROWS = 4096  # features read at a time


@dataclass(frozen=True)
class Space:
    """A feature space: what takes images to features, what its figures are called, and what a result says about it."""

    extract: Callable[[Tensor], Tensor]
    figure: str
    suffix: str
    facts: dict[str, Any]


def _space(recipe: Any, where: torch.device) -> Space:
    features = method_module("evaluate", recipe.method.name).FEATURES
    given = None if recipe.method.weights is None else Path(recipe.method.weights).expanduser()
    proxy = proxies.load(features, weights=given, where=where)
    return Space(proxy, proxy.figure, proxy.figure.removeprefix("fd"), dict(proxy.facts))


def _samples(recipe: Any, where: torch.device) -> tuple[Source, dict[str, Path]]:
    """What is measured, and the files behind it."""
    ref, n = recipe.samples, recipe.method.n
    if ref.startswith("data:"):
        name, _, split = ref.removeprefix("data:").rpartition(":")
        if split not in ("train", "test"):
            raise RecipeError(f"samples: `{ref}` names no split", hint=f"{ref}:test or {ref}:train")
        return _sources.of_data(Data(name=name, root=recipe.reference.root), split).first(n), {}  # type: ignore[arg-type]
    path = Path(ref).expanduser()
    info = read_info(path) if path.is_dir() else None
    if info is not None and info.get("task") == "sample":
        path = _sources.located(path)
    match path.suffix:
        case ".npz":
            return _sources.of_npz(path).first(n), {ref: path}
        case ".safetensors" if path.name == "samples.safetensors":
            return _sources.of_safetensors(path).first(n), {ref: path}
    if path.is_dir() and info is None and not (path / "export").is_dir():
        return _sources.of_folder(path).first(n), {ref: path}
    source = _sources.of_model(ref, where, n=n or _DRAWN, steps=recipe.method.steps, seed=recipe.seed)
    return source, {ref: model_path(ref)}


def execute(job: Job) -> Outcome:
    """Measures and writes the figures of a job. Raises GentkError for what the user can mend."""
    recipe, where = job.recipe, precision.device(job.device)
    space = _space(recipe, where)
    source, files = _samples(recipe, where)
    reference = _sources.of_data(recipe.reference, recipe.split).first(recipe.method.reference_n)
    for each in (source, reference):
        space.extract(next(each.batches(0, 1)))  # the wrong size or colour is said before a long pass
    if job.dry_run:
        return Outcome("planned", answer=f"{space.figure} of {source.n} against {reference.n} images, in {job.out}")
    made_from = inputs.digests(files)
    with Run(inputs.renewed(job, made_from)) as run:
        if run.done is None:
            run.update(inputs=made_from)
            with listening() as stop:
                stop.anywhere = True  # features that are done are on disk
                _work(run, space, source, reference)
    outcome = run.outcome()
    answer = (run.folder / "answer.txt").read_text("utf-8").rstrip()
    return Outcome(outcome.status, outcome.metrics, outcome.run, outcome.seconds, answer=answer)


def _work(run: Run, space: Space, source: Source, reference: Source) -> None:
    config, features = run.job.recipe.method, {}
    total = source.n + reference.n
    with Progress(total, 1, quiet=run.job.quiet) as progress:
        before = 0
        for name, each in (("samples", source), ("reference", reference)):
            made_from = {"source": each.name, "n": each.n, "space": space.facts, "run": run.info["digest"]}
            made_from |= {"inputs": run.info["inputs"]} if name == "samples" else {}
            features[name] = extract(
                each,
                space.extract,
                run.folder / "features" / f"{name}.f64",
                made_from,
                batch=config.batch,
                each=lambda i, before=before: progress.update(before + i, {}),
            )
            before += each.n
    figures, lines = _figures(config, space, features["samples"], features["reference"], run.job.recipe.seed)
    if source.n < _FEW and any(name.startswith(("fd", "fid")) for name in figures):
        run.warn(f"{source.n} samples: a Frechet distance of less than {_FEW} is mostly bias; compare equal N only")
        lines.append(f"warning: N = {source.n}: biased upwards; comparable with the same N only")
    result = {
        "figures": figures,
        "n": source.n,
        "n_reference": reference.n,
        "samples": {"name": source.name} | source.facts,
        "reference": {"name": reference.name} | reference.facts,
        "features": space.facts,
        "formulas": {"frechet": "unbiased covariances, float64, symmetric eigenvalues", "rounding": "EDM's uint8 rule"},
        "inputs": run.info["inputs"],
        "seed": run.job.recipe.seed,
        "versions": versions(),
    }
    (run.folder / "result.json").write_text(json_text(result, indent=1), encoding="utf-8")
    (run.folder / "answer.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run.update(metrics=figures | {"n": float(source.n), "n_reference": float(reference.n)})
    features.clear()
    shutil.rmtree(run.folder / "features")


def _figures(config: Any, space: Space, fake: Tensor, real: Tensor, seed: int) -> tuple[dict[str, float], list[str]]:
    """The figures by name, and a line for each."""
    wanted = dict.fromkeys((method_module("evaluate", config.name).MEASURE, *config.also))
    counts = f"N = {len(fake)} against {len(real)}"
    figures: dict[str, float] = {}
    lines = []
    known = moments(real)
    if "fd" in wanted:
        few = min(len(fake), len(real)) < real.shape[1]
        value = frechet_of(fake, real) if few else frechet_to(known)(moments(fake))
        figures[space.figure] = value
        line = f"{space.figure} {value:.4g}"
        if config.blocks:
            distance = frechet_to(known)
            found = disjoint_blocks(lambda chosen: distance(moments(fake[chosen])), len(fake), count=config.blocks)
            figures[f"{space.figure}_error"] = found.error
            line += f" +- {found.error:.2g} (standard error by {config.blocks} blocks)"
        lines.append(f"{line}, {counts}")
    if "infinity" in wanted:
        limit = fd_infinity(known, fake, seed=seed)
        figures[f"{space.figure}_infinity"] = limit.value
        lines.append(f"{space.figure}_infinity {limit.value:.4g} +- {limit.error:.2g} (fit), {counts}")
    if "kid" in wanted:
        size = config.subset
        if min(len(fake), len(real)) < size:
            raise RecipeError(
                f"method.subset: {size} is more than the {min(len(fake), len(real))} images at hand",
                hint="--set method.subset=100, and say so beside the figure",
            )
        score = kid(real, fake, subsets=config.subsets, size=size, seed=seed)
        figures |= {f"kid{space.suffix}": score.mean, f"kid{space.suffix}_std": score.std}
        lines.append(
            f"kid{space.suffix} {score.mean:.4g} +- {score.error:.2g}, {config.subsets} subsets of {size}, {counts}"
        )
    if "prdc" in wanted:
        shares = prdc(real, fake, config.k)
        names = ("precision", "recall", "density", "coverage")
        found_shares = {f"{name}{space.suffix}": float(getattr(shares, name)) for name in names}
        figures |= found_shares
        lines += [f"{name} {value:.4f}, k = {config.k}, {counts}" for name, value in found_shares.items()]
    return figures, lines


def moments(features: Tensor) -> Moments:
    """Moments of features (N, F) that lie on disk, read in parts."""
    found = Moments()
    for part in torch.split(features, _ROWS):
        found.update(part)
    return found
