"""The torch side of the measures of two sets of images in one feature space, from one pass over each."""

from __future__ import annotations

import functools
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
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import RecipeError
from gentk.metrics import protocols, proxies, statistics
from gentk.metrics.fd_infinity import fd_infinity
from gentk.metrics.frechet import Moments, frechet_of, frechet_to
from gentk.metrics.inception_score import inception_score
from gentk.metrics.intervals import disjoint_blocks
from gentk.metrics.kernel import kid
from gentk.metrics.neighbours import prdc
from gentk.metrics.statistics import Statistics
from gentk.recipe.registry import method_module
from gentk.recipe.stamp import versions
from gentk.tasks.evaluate._features import extract
from gentk.tasks.evaluate._reference import images_of, samples_of
from gentk.tasks.evaluate._sources import Source

_FEW = 10_000  # below this many a Frechet distance is mostly bias
_ROWS = 4096  # features read at a time
_LOGITS = 1008  # of Inception


@dataclass(frozen=True)
class Space:
    """A feature space: what takes images to features, what its figures are called, and what a result says about it.

    The last `logits` columns of what `extract` gives are class logits, for the Inception score.
    """

    name: str
    extract: Callable[[Tensor], Tensor]
    figure: str
    suffix: str
    facts: dict[str, Any]
    logits: int = 0


def _space(recipe: Any, where: torch.device) -> Space:
    config = recipe.method
    name, given = config.features, None if config.weights is None else Path(config.weights).expanduser()
    if name in proxies.names():
        proxy = proxies.load(name, weights=given, where=where)
        return Space(name, proxy, proxy.figure, proxy.figure.removeprefix("fd"), dict(proxy.facts))
    found = protocols.protocol(name, weights=given, where=where)
    if name == "fd-dinov2":
        return Space(name, found.features, "fd_dinov2", "_dinov2", dict(found.facts))
    suffix = "" if name == "edm" else "_" + name.replace("-", "_")  # the default protocol has the plain names
    if "is" not in _wanted(config):
        return Space(name, found.features, f"fid{suffix}", suffix, dict(found.facts))

    def both(images: Tensor) -> Tensor:
        features, logits = found.extract(images)
        assert logits is not None
        return torch.cat([features, logits], 1)

    return Space(name, both, f"fid{suffix}", suffix, dict(found.facts), logits=_LOGITS)


def _wanted(config: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys((method_module("evaluate", config.name).MEASURE, *config.also)))


def _reference(recipe: Any, space: Space) -> Source | Statistics | None:
    """The images compared with, or their statistics. Raises RecipeError where these do not serve the measures."""
    if recipe.reference is None or _wanted(recipe.method) == ("is",):
        return None  # a score of the samples alone
    name = recipe.reference.name
    if name.startswith("stats:"):
        rest = [measure for measure in _wanted(recipe.method) if measure not in ("fd", "infinity", "is")]
        if rest:
            raise RecipeError(f"reference: {', '.join(rest)} needs the images, `{name}` holds statistics alone")
        sha = space.facts.get("weights_sha256") or space.facts.get("sha256")
        return statistics.read(_file_of(recipe), protocol=space.name, weights=sha)
    return images_of(recipe).first(recipe.method.reference_n)


def _file_of(recipe: Any) -> Path:
    return Path(recipe.reference.name.removeprefix("stats:")).expanduser()


def execute(job: Job) -> Outcome:
    """Measures and writes the figures of a job. Raises GentkError for what the user can mend."""
    recipe, where = job.recipe, precision.device(job.device)
    space = _space(recipe, where)
    source, files = samples_of(recipe, where)
    reference = _reference(recipe, space)
    for each in (source, reference):
        if isinstance(each, Source):
            space.extract(next(each.batches(0, 1)))  # the wrong size or colour is said before a long pass
    if job.dry_run:
        return Outcome("planned", answer=f"{recipe.method.name} of {source.n} samples, in {job.out}")
    if isinstance(reference, Statistics):
        files[recipe.reference.name] = _file_of(recipe)
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


def _work(run: Run, space: Space, source: Source, reference: Source | Statistics | None) -> None:
    config, features = run.job.recipe.method, {}
    both = {"samples": source} | ({"reference": reference} if isinstance(reference, Source) else {})
    with Progress(sum(each.n for each in both.values()), 1, quiet=run.job.quiet) as progress:
        before = 0
        for name, each in both.items():
            made_from = {"source": each.name, "n": each.n, "space": space.facts, "run": run.info["digest"]}
            made_from |= {"inputs": run.info["inputs"]} if name == "samples" else {}
            features[name] = extract(
                each,
                space.extract,
                run.folder / "features" / f"{name}.f64",
                made_from,
                batch=config.batch,
                each=functools.partial(_told, progress, before),
            )
            before += each.n
    real = reference if isinstance(reference, Statistics) else features.get("reference")
    figures, lines = _figures(config, space, features["samples"], real, run.job.recipe.seed)
    n_reference = None if reference is None else reference.n
    if source.n < _FEW and any(name.startswith(("fd", "fid")) for name in figures):
        run.warn(f"{source.n} samples: a Frechet distance of less than {_FEW} is mostly bias; compare equal N only")
        lines.append(f"warning: N = {source.n}: biased upwards; comparable with the same N only")
    result = {
        "figures": figures,
        "n": source.n,
        "n_reference": n_reference,
        "samples": {"name": source.name} | source.facts,
        "reference": None
        if reference is None
        else run.job.recipe.reference.model_dump() | {"split": run.job.recipe.split},
        "features": space.facts,
        "formulas": {"frechet": "unbiased covariances, float64, symmetric eigenvalues", "rounding": "EDM's uint8 rule"},
        "inputs": run.info["inputs"],
        "seed": run.job.recipe.seed,
        "versions": versions(),
    }
    (run.folder / "result.json").write_text(json_text(result, indent=1), encoding="utf-8")
    (run.folder / "answer.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    counts = {"n": float(source.n)} | ({} if n_reference is None else {"n_reference": float(n_reference)})
    run.update(metrics=figures | counts)
    features.clear()
    shutil.rmtree(run.folder / "features")


def _told(progress: Progress, before: int, done: int) -> None:
    progress.update(before + done, {})


def _figures(
    config: Any, space: Space, fake: Tensor, real: Tensor | Statistics | None, seed: int
) -> tuple[dict[str, float], list[str]]:
    """The figures by name, and a line for each."""
    wanted = _wanted(config)
    figures: dict[str, float] = {}
    lines = []
    if "is" in wanted:
        if not space.logits:
            raise RecipeError("method.also: the Inception score needs Inception's logits", hint="gentk evaluate is")
        score = inception_score(fake[:, -space.logits :], splits=config.splits)
        fake = fake[:, : -space.logits]
        real = real[:, : -space.logits] if isinstance(real, Tensor) else real
        figures |= {f"is{space.suffix}": score.mean, f"is{space.suffix}_std": score.std}
        lines.append(f"is{space.suffix} {score.mean:.4g} +- {score.std:.2g} ({config.splits} splits), N = {len(fake)}")
    if real is None:
        return figures, lines
    known = real.moments if isinstance(real, Statistics) else moments(real)
    counts = f"N = {len(fake)} against {(real.n or '?') if isinstance(real, Statistics) else len(real)}"
    if "fd" in wanted:
        more, line = _frechet(config, space, fake, real, known)
        figures |= more
        lines.append(f"{line}, {counts}")
    if "infinity" in wanted:
        limit = fd_infinity(known, fake, seed=seed)
        figures[f"{space.figure}_infinity"] = limit.value
        lines.append(f"{space.figure}_infinity {limit.value:.4g} +- {limit.error:.2g} (fit), {counts}")
    if "kid" in wanted:
        assert isinstance(real, Tensor)
        size, most = config.subset, min(len(fake), len(real))
        if most < size:
            raise RecipeError(
                f"method.subset: {size} is more than the {most} images at hand",
                hint="--set method.subset=100, and say so beside the figure",
            )
        found = kid(real, fake, subsets=config.subsets, size=size, seed=seed)
        figures |= {f"kid{space.suffix}": found.mean, f"kid{space.suffix}_std": found.std}
        lines.append(
            f"kid{space.suffix} {found.mean:.4g} +- {found.error:.2g}, {config.subsets} subsets of {size}, {counts}"
        )
    if "prdc" in wanted:
        assert isinstance(real, Tensor)
        shares = prdc(real, fake, config.k)
        names = ("precision", "recall", "density", "coverage")
        by_name = {f"{name}{space.suffix}": float(getattr(shares, name)) for name in names}
        figures |= by_name
        lines += [f"{name} {value:.4f}, k = {config.k}, {counts}" for name, value in by_name.items()]
    return figures, lines


def _frechet(
    config: Any, space: Space, fake: Tensor, real: Tensor | Statistics, known: Moments
) -> tuple[dict[str, float], str]:
    distance = frechet_to(known)
    # Fewer samples than dimensions: the same number from the features themselves, exactly and at once.
    few = isinstance(real, Tensor) and min(len(fake), len(real)) < real.shape[1]
    value = frechet_of(fake, real) if few and isinstance(real, Tensor) else distance(moments(fake))
    figures, line = {space.figure: value}, f"{space.figure} {value:.4g}"
    if config.blocks:
        found = disjoint_blocks(lambda chosen: distance(moments(fake[chosen])), len(fake), count=config.blocks)
        figures[f"{space.figure}_error"] = found.error
        line += f" +- {found.error:.2g} (standard error by {config.blocks} blocks)"
    return figures, line


def moments(features: Tensor) -> Moments:
    """Moments of features (N, F) that lie on disk, read in parts."""
    found = Moments()
    for part in torch.split(features, _ROWS):
        found.update(part)
    return found
