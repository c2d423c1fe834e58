"""The torch side of the measures of two sets of images in one feature space, from one pass over each."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from gentk.engine import dist, pictures, precision
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run
from gentk.errors import RecipeError
from gentk.metrics import protocols, proxies, statistics
from gentk.metrics.fd_infinity import FdInfinity, fd_infinity
from gentk.metrics.frechet import Moments, frechet_of, frechet_to
from gentk.metrics.inception_score import inception_score
from gentk.metrics.intervals import disjoint_blocks
from gentk.metrics.kernel import kid
from gentk.metrics.neighbours import neighbourhoods
from gentk.metrics.statistics import Statistics
from gentk.recipe.registry import method_module
from gentk.tasks.evaluate._features import extract
from gentk.tasks.evaluate._recording import Finding, Values, record
from gentk.tasks.evaluate._reference import folder_of, images_of, samples_of
from gentk.tasks.evaluate._sources import Source, panels

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
    source, files = samples_of(recipe, where, recipe.method.draws)
    each = source.n // recipe.method.draws
    if each < 2:
        raise RecipeError(f"method.draws: {source.n} samples are too few for {recipe.method.draws} draws")
    source = source.first(each * recipe.method.draws)
    reference = _reference(recipe, space)
    for one in (source, reference):
        if isinstance(one, Source):
            space.extract(next(one.batches(0, 1)))  # the wrong size or colour is said before a long pass
    if job.dry_run:
        return Outcome("planned", answer=f"{recipe.method.name} of {source.n} samples, in {job.out}")
    if isinstance(reference, Statistics):
        files[recipe.reference.name] = _file_of(recipe)
    elif reference is not None and (folder := folder_of(recipe)) is not None:
        files[recipe.reference.name] = folder
    return record(job, files, lambda run: _measure(run, space, source, reference), shared=True)


def _measure(run: Run, space: Space, source: Source, reference: Source | Statistics | None) -> Finding | None:
    recipe, config = run.job.recipe, run.job.recipe.method
    features = _features(run, space, source, reference)
    if not dist.current().first:
        return None
    real = reference if isinstance(reference, Statistics) else features.get("reference")
    n_reference, each = None if reference is None else reference.n, source.n // config.draws
    counts = f"N = {each}" + ("" if reference is None else f" against {n_reference or '?'}")
    drawn = [list(_figures(config, space, fake, real, recipe.seed)) for fake in torch.split(features["samples"], each)]
    figures, lines, values = _told_of(drawn[0], counts) if config.draws == 1 else _mean_of(drawn, counts)
    if each < _FEW and any(name.startswith(("fd", "fid")) for name in figures):
        run.warn(f"{each} samples: a Frechet distance of less than {_FEW} is mostly bias; compare equal N only")
        lines.append(f"warning: N = {each}: biased upwards; comparable with the same N only")
    against = None if reference is None else {"name": recipe.reference.name, "split": recipe.split}
    if against and recipe.reference.name in run.info["inputs"]:
        against["sha256"] = run.info["inputs"][recipe.reference.name]
    settings = {key: getattr(config, key) for key in ("draws", "blocks", "subsets", "subset", "splits", "k")}
    shown = {"samples": panels(source, reference if isinstance(reference, Source) else None)}
    shown |= {one.name: one.picture for one in drawn[0] if one.picture is not None}
    facts: dict[str, Any] = {
        "samples": {"name": source.name} | source.facts,
        "formulas": {"frechet": "unbiased covariances, float64, symmetric eigenvalues", "rounding": "EDM's uint8 rule"},
    }
    if config.draws > 1:
        facts["draws"] = [{one.name: one.value for one in draw} for draw in drawn]
    features.clear()
    shutil.rmtree(run.folder / "features")
    comparable = {"features": space.facts, "reference": against, "n": each, "n_reference": n_reference, **settings}
    return Finding(figures, lines, each, n_reference, comparable, facts, values, shown)


def _features(run: Run, space: Space, source: Source, reference: Source | Statistics | None) -> dict[str, Tensor]:
    """Features of the samples, and of the reference where it has images, in files of the run folder."""
    features: dict[str, Tensor] = {}
    both = {"samples": source} | ({"reference": reference} if isinstance(reference, Source) else {})
    with Progress(sum(each.n for each in both.values()), 1, quiet=run.job.quiet) as progress:
        before = 0
        for name, each in both.items():
            made_from = {"source": each.name, "n": each.n, "space": space.facts, "run": run.info["digest"]}
            made_from |= {"inputs": run.info["inputs"]}
            features[name] = extract(
                each,
                space.extract,
                run.folder / "features" / f"{name}.f64",
                made_from,
                batch=run.job.recipe.method.batch,
                each=functools.partial(_told, progress, before),
            )
            before += each.n
    return features


def _told(progress: Progress, before: int, done: int) -> None:
    progress.update(before + done, {})


@dataclass(frozen=True)
class _Figure:
    """One figure of one draw: its value, what the line says of it, and further numbers by name."""

    name: str
    value: float
    note: str
    values: Values | None = None
    more: dict[str, float] = field(default_factory=dict)
    picture: Image | None = None


def _told_of(found: list[_Figure], counts: str) -> tuple[dict[str, float], list[str], dict[str, Values]]:
    """Figures by name, a line for each, and their values."""
    figures: dict[str, float] = {}
    for one in found:
        figures |= {one.name: one.value} | one.more
    lines = [f"{one.name} {one.value:.4g}{one.note}, {counts}" for one in found]
    return figures, lines, {one.name: one.values for one in found if one.values is not None}


def _mean_of(drawn: list[list[_Figure]], counts: str) -> tuple[dict[str, float], list[str], dict[str, Values]]:
    """The same of several draws: mean and spread (standard deviation) of each figure over the draws."""
    figures: dict[str, float] = {}
    lines, values = [], {}
    for same in zip(*drawn, strict=True):
        name, each = same[0].name, torch.tensor([one.value for one in same], dtype=torch.float64)
        figures |= {name: float(each.mean()), f"{name}_spread": float(each.std())}
        listed = ", ".join(f"{value:.4g}" for value in each.tolist())
        lines.append(f"{name} {figures[name]:.4g} +- {figures[f'{name}_spread']:.2g} (draws: {listed}), {counts} each")
        parts = [one.values for one in same if one.values is not None]
        if len(parts) == len(same):
            values[name] = Values(parts[0].unit, torch.cat([part.values for part in parts]), parts[0].shared)
    return figures, lines, values


def _figures(config: Any, space: Space, fake: Tensor, real: Tensor | Statistics | None, seed: int) -> Iterator[_Figure]:
    """The figures of one draw."""
    wanted = _wanted(config)
    if "is" in wanted:
        if not space.logits:
            raise RecipeError("method.also: the Inception score needs Inception's logits", hint="gentk evaluate is")
        score = inception_score(fake[:, -space.logits :], splits=config.splits)
        fake = fake[:, : -space.logits]
        real = real[:, : -space.logits] if isinstance(real, Tensor) else real
        name, note = f"is{space.suffix}", f" +- {score.std:.2g} ({config.splits} splits)"
        of_splits = Values("split", torch.tensor(score.values, dtype=torch.float64))
        yield _Figure(name, score.mean, note, of_splits, {f"{name}_std": score.std})
    if real is None:
        return
    known = real.moments if isinstance(real, Statistics) else moments(real)
    if "fd" in wanted:
        yield _frechet(config, space, fake, real, known)
    if "infinity" in wanted:
        limit = fd_infinity(known, fake, seed=seed)
        name, note = f"{space.figure}_infinity", f" +- {limit.error:.2g} (fit)"
        yield _Figure(name, limit.value, note, picture=_line_of(limit, space.figure))
    if "kid" in wanted:
        assert isinstance(real, Tensor)
        yield _kid(config, space, fake, real, seed)
    if "prdc" in wanted:
        assert isinstance(real, Tensor)
        found = neighbourhoods(real, fake, config.k)
        for name, value in found.means()._asdict().items():
            of_samples = Values("sample", getattr(found, name))
            yield _Figure(f"{name}{space.suffix}", value, f", k = {config.k}", of_samples)


def _kid(config: Any, space: Space, fake: Tensor, real: Tensor, seed: int) -> _Figure:
    size, most = config.subset, min(len(fake), len(real))
    if most < size:
        raise RecipeError(
            f"method.subset: {size} is more than the {most} images at hand",
            hint="--set method.subset=100, and say so beside the figure",
        )
    found = kid(real, fake, subsets=config.subsets, size=size, seed=seed)
    of_subsets = Values("subset", torch.tensor(found.values, dtype=torch.float64), found.shared)
    name, note = f"kid{space.suffix}", f" +- {found.error:.2g}, {config.subsets} subsets of {size}"
    return _Figure(name, found.mean, note, of_subsets, {f"{name}_std": found.std})


def _frechet(config: Any, space: Space, fake: Tensor, real: Tensor | Statistics, known: Moments) -> _Figure:
    distance = frechet_to(known)
    # Fewer samples than dimensions: the same number from the features themselves, exactly and at once.
    few = isinstance(real, Tensor) and min(len(fake), len(real)) < real.shape[1]
    value = frechet_of(fake, real) if few and isinstance(real, Tensor) else distance(moments(fake))
    if not config.blocks:
        return _Figure(space.figure, value, "")
    found = disjoint_blocks(lambda chosen: distance(moments(fake[chosen])), len(fake), count=config.blocks)
    note = f" +- {found.error:.2g} (standard error by {config.blocks} blocks)"
    of_blocks = Values("block", torch.tensor(found.values, dtype=torch.float64))
    return _Figure(space.figure, value, note, of_blocks, {f"{space.figure}_error": found.error})


def _line_of(limit: FdInfinity, name: str) -> Image:
    """The extrapolation as a picture: distances over 1 / N, and the line to their limit."""

    def draw(axes: Any) -> None:
        axes.plot([1 / n for n in limit.sizes], limit.distances, "o", color=pictures.INK, ms=4)
        ends = (0.0, 1 / min(limit.sizes))
        axes.plot(ends, [limit.value + limit.slope * x for x in ends], color=pictures.INK, lw=1)
        axes.set(xlabel="1 / N", title=f"{name}: {limit.value:.4g} in the limit", xlim=(0, None))

    return pictures.chart(draw)


def moments(features: Tensor) -> Moments:
    """Moments of features (N, F) that lie on disk, read in parts."""
    found = Moments()
    for part in torch.split(features, _ROWS):
        found.update(part)
    return found
