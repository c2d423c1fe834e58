"""The torch side of `purify`: attack, answer on fresh draws, count by every rule, and say what cannot be trusted."""

from __future__ import annotations

import csv
import hashlib
import io
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gentk.attacks.ball import Ball
from gentk.attacks.pgd import predictions
from gentk.attacks.suite import attack
from gentk.engine import dist, inputs, pictures, precision, ranks
from gentk.engine.log import json_text
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import RecipeError
from gentk.metrics.intervals import Interval, wilson
from gentk.metrics.robustness import Flag, Scores, accuracy, denominators, flags, half_width, minimum, scores
from gentk.recipe.attacking import disjoint_seeds
from gentk.recipe.registry import method_module
from gentk.recipe.stamp import versions
from gentk.tasks.purify import _showing
from gentk.tasks.purify._attacking import Broken, Cells, Made, again, located, made, names
from gentk.tasks.purify._bench import Bench, build, files, plan, seeds

_RULE = "average"  # the rule of the figures that carry no other's name
_FULL = ("pgd-eot", "pgd")  # the attacks with the gradient of everything


@dataclass(frozen=True, eq=False)
class Answered:
    """One row: images of an attack (None: clean ones) answered by the defence on fresh draws."""

    name: str
    scores: Scores
    right: Tensor  # (N,) right draws
    made: Made | None = None
    known: float | None = None  # share right on the very noise that `frozen` was made for


@dataclass(eq=False)
class Findings:
    """Everything that a run has found."""

    clean: Answered
    rows: list[Answered] = field(default_factory=list)
    bare: dict[str, float] = field(default_factory=dict)  # of the undefended classifier: clean, and under blind PGD
    missing: dict[str, str] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, Interval]]] = field(default_factory=dict)
    purify_ms: float = 0.0

    @property
    def least(self) -> Scores:
        """What survives every attack, image by image."""
        return minimum([row.scores for row in self.rows])


def execute(job: Job) -> Outcome:
    """Attacks, answers and writes the figures of a job. Raises GentkError for what the user can mend."""
    recipe, where = job.recipe, precision.device(job.device)
    disjoint_seeds(recipe.attack.seed, recipe.scoring.seed)
    if recipe.scoring.worst_of > recipe.scoring.draws:
        raise RecipeError(
            f"scoring.worst_of: {recipe.scoring.worst_of} of {recipe.scoring.draws} draws", hint="raise scoring.draws"
        )
    if job.dry_run:
        bench = build(recipe, where)
        run_names, missing = names(recipe, bench.victim)
        left_out = "".join(f"\nleft out: {name}: {why}" for name, why in missing.items())
        return Outcome(
            "planned",
            answer=f"{len(bench)} images of {recipe.data.name}, {recipe.method.name} ({bench.victim.nfe} NFE) before "
            f"{recipe.classifier.name}; {recipe.threat.norm} {recipe.threat.eps:.4g}; attacks: "
            f"{', '.join(run_names) or 'none'}; in {job.out}{left_out}",
        )
    made_from = files(recipe) | ({} if recipe.stored is None else {str(p): p for p in located(recipe.stored)})
    digests = inputs.digests(made_from)
    with ranks.opened(inputs.renewed(job, digests)) as run:
        if run.done is None:
            run.update(inputs=digests)
            with listening() as stop:
                stop.anywhere = True  # every batch that is done is on disk
                _work(run, where)
    if run.done is None:
        ranks.reported(run)
    outcome, answer = run.outcome(), ranks.said(run, "answer.txt")
    return Outcome(outcome.status, outcome.metrics, outcome.run, outcome.seconds, answer=answer)


def _work(run: Run, where: torch.device) -> None:
    recipe = run.job.recipe
    bench = build(recipe, where)
    begun = time.perf_counter()
    found = Findings(_answered(recipe, bench, "clean", bench.x, None))
    draws = recipe.scoring.draws if bench.victim.random else 1
    found.purify_ms = 1000 * (time.perf_counter() - begun) / (len(bench) * draws * recipe.votes)
    found.bare["clean"] = _bare(recipe, bench, bench.x)
    wanted, found.missing = ((), {}) if recipe.stored else names(recipe, bench.victim)
    for name, why in found.missing.items():
        run.warn(f"attack {name} left out: {why}")
    done = 0

    def told(n: int) -> None:
        nonlocal done
        done += n
        progress.update(done)

    with Progress(max(1, len(wanted)) * len(bench), 1, label="attack", quiet=run.job.quiet) as progress:

        def attacked(name: str) -> Made:
            spare = name == "autoattack" and recipe.attack.name == "suite"
            return made(run, bench, name, recipe.batch, told, _broken(bench, found) if spare else None)

        images = again(recipe, bench) if recipe.stored else map(attacked, wanted)
        for each in images:
            row = _answered(recipe, bench, each.name, each.x.to(where), each)
            found.rows.append(row)
            if each.name == "blind":
                found.bare["blind"] = _bare(recipe, bench, each.x.to(where))
            run.log.text(f"{each.name}: {_showing.percent(float(row.scores[_RULE].mean()))} in {each.seconds:.0f} s")
    _sweep(run, bench, found, where)
    if dist.current().first:
        _write(run, bench, found)


def _broken(bench: Bench, found: Findings) -> Broken:
    """The images that no draw answers rightly any more under one of the attacks so far."""
    which, x = torch.zeros(len(bench), dtype=torch.bool), bench.x.cpu().clone()
    for row in found.rows:
        if row.made is not None:
            new = (row.right == 0) & ~which
            x[new], which = row.made.x[new], which | new
    return Broken(which, x)


def _answered(recipe: Any, bench: Bench, name: str, x: Tensor, by: Made | None) -> Answered:
    """The defence's answers on draws that no attack has seen."""
    scoring, chunk = recipe.scoring, recipe.attack.chunk
    each = -(-len(x) // dist.current().size)  # images for each of the processes

    def answered(rows: Tensor) -> Tensor:
        own = x[rows.to(x.device)], bench.ids[rows]
        return predictions(bench.victim, *own, seed=seeds(recipe).scoring, draws=scoring.draws, chunk=chunk)

    answers = torch.cat(dist.current().spread(torch.split(torch.arange(len(x)), each), answered))
    y, known = bench.y.cpu(), None
    if by is not None and by.knowledge == "frozen":
        told = predictions(bench.victim, x, bench.ids, seed=seeds(recipe).attack, draws=1, chunk=chunk)
        known = float((told[:, 0] == y).double().mean())
    right = (answers == y[:, None]).sum(1)
    return Answered(name, scores(answers, y, worst_of=scoring.worst_of), right, by, known)


@torch.no_grad()  # a measurement
def _bare(recipe: Any, bench: Bench, x: Tensor) -> float:
    """The share that the undefended classifier gets right."""
    answers = torch.cat([bench.bare.net(part).argmax(1) for part in torch.split(x, recipe.attack.chunk)])
    return float((answers == bench.y).double().mean())


def _sweep(run: Run, bench: Bench, found: Findings, where: torch.device) -> None:
    """The curves that the recipe asks for: accuracy by the rule `average` over one key at a time."""
    recipe = run.job.recipe
    section, few = recipe.sweep, bench.first(min(recipe.sweep.images, len(bench)))
    masked = getattr(method_module("purify", recipe.method.name), "MASKED", False)
    usual = "surrogate" if masked else "pgd-eot" if bench.victim.random else "pgd"
    name, level = section.attack or usual, recipe.scoring.level
    cells = [(key, value) for key in ("eps", "eot", "steps", "t_star") for value in getattr(section, key)]
    if not cells:
        return
    done = Cells(run)
    dist.current().wait()  # what one finds on disk all do, before another is put there
    with Progress(len(cells), len(few), label=f"curves, {name}", quiet=run.job.quiet) as progress:
        for i, (key, value) in enumerate(cells, start=1):
            shares = done.get(key, value)
            if shares is None:
                shares = _cell(recipe, few, name, key, value, where)
                if dist.current().first:
                    done.put(key, value, shares)
            for curve, share in shares.items():
                found.curves.setdefault(curve, []).append((value, wilson(share * len(few), len(few), level=level)))
            progress.update(i)
    if dist.current().first:
        done.clear()


def _cell(recipe: Any, few: Bench, name: str, key: str, value: float, where: torch.device) -> dict[str, float]:
    """The share right at one value of a key, by the curve's name; for t*, which costs clean images too, both."""
    of, settings = few, plan(recipe)
    if key == "t_star":
        kind = next((k for k in ("t_star", "t0") if hasattr(recipe.method, k)), None)
        if kind is None:
            raise RecipeError(f"sweep.t_star: `{recipe.method.name}` has no noise level to vary")
        of = build(recipe, where, **{kind: value}).first(len(few))
    else:
        settings = plan(recipe, **{key: value})  # type: ignore[arg-type]  # eot and steps are integers in the recipe
    moved = attack(name, of.victim, of.x, of.y, of.ids, settings)
    shares = {key: float(_answered(recipe, of, name, moved.x, None).scores[_RULE].mean())}
    if key == "t_star":
        shares["t_star, clean"] = float(_answered(recipe, of, "clean", of.x, None).scores[_RULE].mean())
    return shares


def _flags(found: Findings) -> tuple[Flag, ...]:
    """Red flags by the rule `average`, P's names for the attacks that count."""
    by_name = {row.name: float(row.scores[_RULE].mean()) for row in found.rows}
    counted: dict[str, float] = {
        name: by_name[name] for name in ("blind", "bpda", "surrogate", "square") if name in by_name
    }
    by_images = {row.name: row.scores[_RULE] for row in found.rows}
    full = min((name for name in _FULL if name in by_name), key=lambda name: by_name[name], default=None)
    doubt = 0.0
    if full is not None:
        counted["full"] = by_name[full]
        if "surrogate" in by_images:
            doubt = half_width(by_images[full], by_images["surrogate"])
    return flags(
        counted,
        one_step=by_name.get("one-step"),
        curve=found.curves.get("eps", ()),
        clean=float(found.clean.scores[_RULE].mean()),
        doubt=doubt,
    )


def _figures(found: Findings) -> dict[str, float]:
    """What `--json` reports: shares right by the rule `average`, and the clean and least ones by every rule."""
    figures = {"clean": float(found.clean.scores[_RULE].mean())}
    figures |= {f"undefended_{name}": value for name, value in found.bare.items()}
    for row in found.rows:
        figures[row.name.replace(":", "_")] = float(row.scores[_RULE].mean())
        if row.known is not None:
            figures[f"{row.name}_known"] = row.known
    whole = {"clean": found.clean.scores} | ({"robust": found.least} if found.rows else {})
    for name, by_rule in whole.items():
        figures |= {name if rule == _RULE else f"{name}_{rule}": float(s.mean()) for rule, s in by_rule.items()}
    return figures | {"purify_ms": found.purify_ms}


def _write(run: Run, bench: Bench, found: Findings) -> None:
    recipe, level = run.job.recipe, run.job.recipe.scoring.level
    raised = _flags(found)
    adaptive = any(row.made and row.made.knowledge in ("full", "surrogate", "frozen") for row in found.rows)
    remarks = _showing.remarks(recipe, found, raised, adaptive=adaptive, random=bench.victim.random)
    table = _showing.table(found, level)
    paired = _paired(found)
    result = {
        "claim": "robust accuracy under the attacks tried: an upper bound" + ("" if adaptive else "; non-adaptive"),
        "threat": _threat(recipe, bench, found),
        "defence": bench.facts,
        "clean": _rules(found.clean.scores, level),
        "attacks": {row.name: _row(row, found.clean.scores, level) for row in found.rows},
        "minimum": _rules(found.least, level) if found.rows else None,
        "undefended": found.bare,
        "not_run": found.missing,
        "flags": [{"name": f.name, "words": f.words, "answered": f.answered} for f in raised],
        "masked": any(f.name == "masked" for f in raised),
        "adaptive": adaptive,
        "curves": {k: [[v, *each] for v, each in points] for k, points in found.curves.items()},
        "purify_ms": found.purify_ms,
        "nfe": bench.victim.nfe,
        "peak_memory_mb": _peak(bench.x.device),
        # What `gentk evaluate compare RUN RUN` needs to subtract two defences image by image.
        "figures": {name: float(score.mean()) for name, score in paired.items()},
        "n": len(bench),
        "comparable": _comparable(recipe, bench),
        "values": {name: {"unit": "sample", "shared": 0.0} for name in paired},
        "inputs": run.info["inputs"],
        "versions": versions(),
    }
    (run.folder / "result.json").write_text(json_text(result, indent=1), encoding="utf-8")
    with (run.folder / "values.npz").open("wb") as file:
        arrays: dict[str, Any] = {name: score.numpy() for name, score in paired.items()}
        np.savez(file, **arrays)
    (run.folder / "answer.txt").write_text(_showing.answer(table, remarks) + "\n", encoding="utf-8")
    (run.folder / "images.csv").write_text(_per_image(bench, found, plan(recipe).ball), encoding="utf-8")
    for name, picture in _showing.drawn(recipe, bench, found).items():
        pictures.save(picture, run.folder / "samples" / f"{name}.png")
    run.update(metrics=_figures(found), remarks=remarks, table=table)


def _paired(found: Findings) -> dict[str, Tensor]:
    """Scores of each image by the name of the figure that is their mean."""
    pairs = {"clean": found.clean.scores[_RULE]} | {row.name: row.scores[_RULE] for row in found.rows}
    if found.rows:
        pairs |= {"robust" if rule == _RULE else f"robust_{rule}": s for rule, s in found.least.items()}
    return pairs


def _comparable(recipe: Any, bench: Bench) -> dict[str, Any]:
    """What must be alike for two figures to mean the same."""
    settings = recipe.attack.model_dump(mode="json", exclude={"name", "chunk", "seed"})
    images = hashlib.sha256(bench.ids.numpy().tobytes()).hexdigest()[:12]
    return {
        "data": recipe.data.name,
        "split": recipe.split,
        "images": images,
        "threat": recipe.threat.model_dump(mode="json"),
        "attack": settings | {"seed": seeds(recipe).attack},
        "draws": recipe.scoring.draws,
    }


def _threat(recipe: Any, bench: Bench, found: Findings) -> dict[str, Any]:
    """All that a figure means: range, norm, eps, rules, seeds, which images."""
    scoring = recipe.scoring
    return {
        "space": "[0, 1], float32, N C H W; clipped to it",
        "norm": recipe.threat.norm,
        "eps": recipe.threat.eps,
        "images": len(bench),
        "ids": bench.ids.tolist(),
        "data": recipe.data.name,
        "split": recipe.split,
        "rules": list(found.clean.scores),
        "votes": {"clean": recipe.votes, "robust": recipe.votes},
        "draws": scoring.draws,
        "seeds": seeds(recipe)._asdict(),
        "knowledge": {row.name: row.made.knowledge for row in found.rows if row.made},
        "attack": recipe.attack.model_dump(mode="json"),
    }


def _rules(by_rule: Mapping[str, Tensor], level: float) -> dict[str, list[float]]:
    return {rule: list(accuracy(score, level=level)) for rule, score in by_rule.items()}


def _row(row: Answered, clean: Scores, level: float) -> dict[str, Any]:
    assert row.made is not None
    found: dict[str, Any] = {
        "knowledge": row.made.knowledge,
        "seconds": row.made.seconds,
        **row.made.facts,
        "accuracy": _rules(row.scores, level),
        "of_those_right_when_clean": {},
    }
    for rule, score in row.scores.items():
        kept = denominators(score, clean[rule], level=level).of_right
        found["of_those_right_when_clean"][rule] = None if kept is None else list(kept)
    return found | ({} if row.known is None else {"accuracy_on_the_known_noise": row.known})


def _per_image(bench: Bench, found: Findings, ball: Ball) -> str:
    """One line per image: right draws when clean and under each attack, and how far the attack went."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    pairs = [(row, row.made) for row in found.rows if row.made is not None]
    far = [ball.distance(by.x, bench.x.cpu()) for _, by in pairs]
    out.writerow(["index", "label", "clean", *(h for row, _ in pairs for h in (row.name, f"{row.name}_distance"))])
    for i in range(len(bench)):
        cells = [c for (row, _), d in zip(pairs, far, strict=True) for c in (int(row.right[i]), f"{float(d[i]):.6g}")]
        out.writerow([int(bench.ids[i]), int(bench.y[i]), int(found.clean.right[i]), *cells])
    return text.getvalue()


def _peak(device: torch.device) -> float:
    """The most memory in use so far, in MB: the device's, or the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
