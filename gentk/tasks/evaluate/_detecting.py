"""The torch side of `evaluate geneval`: pictures through a detector and GenEval's rules, or detections from a file.

Verdicts are written one by one, in the form that the official tool writes and `--samples FILE.jsonl` reads, so that a
measurement that was stopped goes on with the next picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from gentk.engine import pictures, precision
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run
from gentk.errors import RecipeError, RunFailed
from gentk.metrics import geneval, mask2former
from gentk.metrics.geneval import Detection, Objects, Prompt, Verdict
from gentk.metrics.intervals import Estimate
from gentk.recipe import weights
from gentk.rewards import colours
from gentk.tasks.evaluate import _sources
from gentk.tasks.evaluate._recording import Finding, Values, record
from gentk.tasks.evaluate._reference import samples_of
from gentk.tasks.evaluate._sources import Source, panels

_OFFICIAL = "official tool's detections"
_VERDICTS = "verdicts.jsonl"


def execute(job: Job) -> Outcome:
    """Measures and writes the figures of a job. Raises GentkError for what the user can mend."""
    recipe, where = job.recipe, precision.device(job.device)
    if recipe.samples.endswith(".jsonl"):
        path = Path(recipe.samples).expanduser()
        results = geneval.read_results(path)
        if job.dry_run:
            return Outcome("planned", answer=f"geneval of {len(results)} detections, in {job.out}")
        return record(job, {recipe.samples: path}, lambda run: _stored(run, results))
    config = recipe.method
    source, files = samples_of(recipe, where)
    place = (
        weights.find(geneval.PROMPTS, remedy="name the file by --prompts FILE")
        if config.prompts is None
        else Path(config.prompts).expanduser()
    )
    prompts = [prompt for prompt in geneval.read_prompts(place) for _ in range(config.per_prompt)]
    files["prompts"] = place
    if len(prompts) != source.n:
        raise RecipeError(
            f"{place}: {len(prompts)} prompts ({config.per_prompt} pictures each) for {source.n} pictures",
            hint="pictures in the order of the prompts; method.per_prompt says how many share one",
        )
    detector = mask2former.build(config.weights, where=where)
    asked = any(clause.colour is not None for prompt in prompts for clause in prompt.include)
    by_colour = colours.build(config.clip, where=where) if asked else None
    if config.check_detector is not None:
        photographs = _sources.of_folder(Path(config.check_detector).expanduser())
        found = [each for part in photographs.batches(0, config.batch) for each in detector(part.expand(-1, 3, -1, -1))]
        geneval.check_detector(found)
    if job.dry_run:
        return Outcome("planned", answer=f"geneval of {source.n} pictures, in {job.out}")
    return record(job, files, lambda run: _detect(run, source, prompts, detector, by_colour))


def _detect(
    run: Run,
    source: Source,
    prompts: Sequence[Prompt],
    detector: geneval.Detector,
    by_colour: geneval.ColourClassifier | None,
) -> Finding:
    config, path = run.job.recipe.method, run.folder / _VERDICTS
    verdicts = _begun(path, prompts, run.info)
    with Progress(source.n, 1, quiet=run.job.quiet) as progress, path.open("a", encoding="utf-8") as file:
        for part in source.batches(len(verdicts), config.batch):
            images = part.expand(-1, 3, -1, -1)
            for image, objects in zip(images, detector(images), strict=True):
                prompt = prompts[len(verdicts)]
                verdict = geneval.judge(prompt, objects, image, by_colour)
                verdicts.append(verdict.correct)
                file.write(_line(len(verdicts) - 1, prompt, objects, verdict) + "\n")
            file.flush()
            progress.update(len(verdicts), {})
    finding = _finding([prompt.tag for prompt in prompts], verdicts, config.per_prompt, detector.name)
    finding.comparable["prompts"] = run.info["inputs"]["prompts"]
    finding.facts["samples"] = {"name": source.name} | source.facts
    finding.pictures["samples"] = panels(source)
    return finding


def _stored(run: Run, results: Sequence[geneval.Result]) -> Finding:
    """By detections in a file; where a colour is asked for, by the verdict beside them, which saw the pictures."""
    verdicts, disagreed = [], 0
    for i, each in enumerate(results, 1):
        if any(clause.colour is not None for clause in each.prompt.include):
            if each.correct is None:
                raise RunFailed(
                    f"{run.job.recipe.samples}: record {i} asks for a colour and has no `correct`",
                    hint="colours are seen in the pictures: give those, --samples FOLDER",
                )
            verdicts.append(each.correct)
            continue
        verdicts.append(geneval.judge(each.prompt, each.objects).correct)
        disagreed += each.correct is not None and each.correct != verdicts[-1]
    if disagreed:
        run.warn(
            f"{disagreed} of {len(results)} verdicts in the file are not those of its detections by GenEval's rules"
        )
    finding = _finding([each.prompt.tag for each in results], verdicts, run.job.recipe.method.per_prompt, _OFFICIAL)
    finding.facts["verdicts_that_disagree"] = disagreed
    return finding


def _finding(tags: Sequence[str], verdicts: Sequence[bool], per_prompt: int, detector: str) -> Finding:
    """Scores of the tasks and of all, their errors by the spread over prompts: pictures of one prompt are alike."""
    summary = geneval.summarise(tags, verdicts)
    errors: dict[str, float] = {}
    values: dict[str, Values] = {}
    for task in summary.tasks:
        right = torch.tensor(
            [float(v) for tag, v in zip(tags, verdicts, strict=True) if tag == task], dtype=torch.float64
        )
        of_prompts = torch.stack([part.mean() for part in torch.split(right, per_prompt)])
        values[f"geneval_{task}"] = Values("prompt", of_prompts)
        if len(of_prompts) > 1:
            errors[task] = float(of_prompts.std() / len(of_prompts) ** 0.5)
    figures, lines = {}, []
    if summary.overall is not None:
        figures["geneval"] = summary.overall
        line = f"geneval {summary.overall:.4f}"
        if len(errors) == len(summary.tasks):
            # the mean of six independent figures
            figures["geneval_error"] = sum(e**2 for e in errors.values()) ** 0.5 / len(errors)
            found = Estimate(summary.overall, figures["geneval_error"]).interval()
            line += f" [{found.low:.4f}, {found.high:.4f}] (95 %, over prompts)"
        lines.append(f"{line}, mean of {len(summary.tasks)} tasks, N = {len(verdicts)}, detector: {detector}")
    for task, value in summary.tasks.items():
        figures[f"geneval_{task}"] = value
        lines.append(f"geneval_{task} {value:.4f}, N = {summary.counts[task]}")
    if detector != _OFFICIAL:
        lines.append("note: GenEval-compatible: published figures are by another training of this detector")
    return Finding(
        figures,
        lines,
        len(verdicts),
        comparable={"detector": detector, "per_prompt": per_prompt, "n": len(verdicts)},
        values=values,
        pictures={"tasks": _bars(summary.tasks)},
    )


def _begun(path: Path, prompts: Sequence[Prompt], info: dict[str, Any]) -> list[bool]:
    """The verdicts of a measurement of the same prompts and pictures that was stopped; a torn last line is dropped."""
    mark = path.with_suffix(".json")
    made_from = json.dumps(info["inputs"] | {"recipe": info["digest"]}, sort_keys=True)
    if mark.is_file() and mark.read_text("utf-8") == made_from and path.is_file():
        whole = [line for line in path.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
        path.write_text("".join(whole), encoding="utf-8")
        return [bool(json.loads(line)["correct"]) for line in whole[: len(prompts)]]
    path.unlink(missing_ok=True)
    mark.write_text(made_from, encoding="utf-8")
    return []


def _line(index: int, prompt: Prompt, objects: Objects, verdict: Verdict) -> str:
    """One record in the official tool's form."""
    kept = geneval.keep(objects, prompt.tag)
    return json.dumps(
        {
            "filename": f"{index:05d}",
            "tag": prompt.tag,
            "prompt": prompt.text,
            "correct": verdict.correct,
            "reason": "\n".join(verdict.reasons),
            "metadata": json.dumps(prompt.record()),
            "details": json.dumps({name: [_row(each) for each in found] for name, found in kept.items()}),
        }
    )


def _row(each: Detection) -> list[float]:
    return [*map(float, each.box), each.score]


def _bars(tasks: dict[str, float]) -> Image:
    def draw(axes: Any) -> None:
        axes.barh(list(tasks), list(tasks.values()), color=pictures.INK, height=0.6)
        axes.set(xlim=(0, 1), title="share of pictures that are right")
        axes.invert_yaxis()

    return pictures.chart(draw)
