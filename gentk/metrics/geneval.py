"""GenEval (Ghosh et al. 2023, arXiv:2310.11513): does a picture show the objects that its prompt names?

The scoring rules of the official tool, for detections from anywhere: a `Detector`, or a file that was written before
(`read_results`). Boxes are (left, top, right, bottom) in pixels, y down. Scores depend on the detector: only those of
the official one may be called GenEval, others are GenEval-compatible, and `Detector.name` goes with the figure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from gentk.errors import MissingAsset, RunFailed
from gentk.recipe.weights import Weights

PROMPTS = Weights(
    name="evaluation_metadata.jsonl",
    url="https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl",
    size=85_209,
    sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
    licence="MIT",
    note="the 553 prompts of GenEval with what each asks for",
)
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # scores must be above
MOST = 16  # detections kept of each class
_SHRINK = 0.1


@dataclass(frozen=True)
class Detection:
    """One object: its box in pixels, the detector's score, and its mask (H, W) of bool if there is one."""

    box: tuple[float, float, float, float]
    score: float
    mask: Tensor | None = None


T = TypeVar("T")
Objects = Mapping[str, Sequence[Detection]]


class Detector(Protocol):
    """Finds COCO's objects by GenEval's names of them (Weights `PROMPTS` uses the same)."""

    name: str

    def __call__(self, images: Tensor) -> list[Objects]:
        """uint8 (N, 3, H, W) -> for each picture the detections of each class, in any order, of any score."""


class ColourClassifier(Protocol):
    """Says which of `COLOURS` each object has."""

    def __call__(self, image: Tensor, objects: Sequence[Detection], name: str) -> list[str]:
        """uint8 (3, H, W) and objects of the class `name` in it -> one colour for each."""


@dataclass(frozen=True)
class Clause:
    """`count` objects of the class `name`; each of `colour`, each in `relation` to all of the clause `target`."""

    name: str
    count: int
    colour: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class Prompt:
    """What is asked of a picture: all of `include` must hold, none of `exclude`."""

    tag: str
    text: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Prompt:
        """From one record of the official file. Raises KeyError, TypeError or ValueError for another."""
        if record["tag"] not in TASKS:
            raise ValueError(f"unknown tag {record['tag']!r}")
        prompt = cls(
            record["tag"],
            record["prompt"],
            tuple(_clause(c) for c in record["include"]),
            tuple(_clause(c) for c in record.get("exclude", [])),
        )
        for i, clause in enumerate(prompt.include):
            if clause.relation is not None and not 0 <= clause.target < i:
                raise ValueError(f"the target of clause {i} is not before it")
        return prompt

    def record(self) -> dict[str, Any]:
        """The record that `of` reads."""
        parts = {key: [_record(c) for c in getattr(self, key)] for key in ("include", "exclude")}
        return {"tag": self.tag, **{key: each for key, each in parts.items() if each}, "prompt": self.text}


@dataclass(frozen=True)
class Verdict:
    """Whether a picture is right, and what is wrong with it."""

    correct: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """`tasks`: the mean over the pictures of each task; `counts`: how many they are.

    `overall` is the mean of the six, each counting alike; None unless there are pictures of all six.
    """

    tasks: dict[str, float]
    counts: dict[str, int]
    overall: float | None


@dataclass(frozen=True)
class Result:
    """A line of a file of detections: the picture, what was asked, what was found, the writer's verdict if any."""

    file: str
    prompt: Prompt
    objects: dict[str, list[Detection]]
    correct: bool | None


def keep(objects: Objects, tag: str) -> dict[str, list[Detection]]:
    """What counts: above the threshold of the task, the `MOST` best of each class, the best first.

    No detection suppresses an overlapping one: the official limit of overlap is 1.
    """
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    kept = {
        name: sorted((d for d in found if d.score > threshold), key=lambda d: -d.score)[:MOST]
        for name, found in objects.items()
    }
    return {name: found for name, found in kept.items() if found}


def relations(a: Detection, b: Detection) -> set[str]:
    """Where a is, seen from b: none, one or two of `left of`, `right of`, `above`, `below`.

    The offset of the centres is shortened on each axis by a tenth of the two extents, but measured against its full
    length: above half of that counts, which two axes can be at once.
    """
    offset, shrunk = [], []
    for low, high in ((0, 2), (1, 3)):
        distance = (a.box[low] + a.box[high]) / 2 - (b.box[low] + b.box[high]) / 2
        extent = abs(a.box[high] - a.box[low]) + abs(b.box[high] - b.box[low])
        offset.append(distance)
        shrunk.append(math.copysign(max(abs(distance) - _SHRINK * extent, 0), distance))
    if max(map(abs, shrunk)) < 1e-3:
        return set()
    dx, dy = (s / math.hypot(*offset) for s in shrunk)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, true in holds.items() if true}


def judge(
    prompt: Prompt, objects: Objects, image: Tensor | None = None, colours: ColourClassifier | None = None
) -> Verdict:
    """Whether a picture with `objects`, as detected, shows what `prompt` asks for.

    `image` uint8 (3, H, W) and `colours` are needed where a colour is asked for. Raises RunFailed if they are absent.
    """
    kept, reasons = keep(objects, prompt.tag), []
    matched: list[Sequence[Detection] | None] = []
    for clause in prompt.include:
        found = kept.get(clause.name, [])[: clause.count]
        reason = _fault(clause, found, matched, image, colours)
        reasons += [reason] if reason else []
        matched.append(None if reason else found)
    for clause in prompt.exclude:
        if (count := len(kept.get(clause.name, []))) >= clause.count:
            reasons.append(f"fewer than {clause.count} {clause.name} expected, {count} found")
    return Verdict(not reasons, tuple(reasons))


def summarise(tags: Sequence[str], correct: Sequence[bool]) -> Summary:
    """Figures over pictures, of task `tags[i]` and `correct[i]` or not."""
    counts = {task: n for task in TASKS if (n := sum(tag == task for tag in tags))}
    right = dict.fromkeys(counts, 0)
    for tag, true in zip(tags, correct, strict=True):
        right[tag] += bool(true)
    means = {task: right[task] / n for task, n in counts.items()}
    return Summary(means, counts, sum(means.values()) / len(TASKS) if len(means) == len(TASKS) else None)


def check_detector(found: Sequence[Objects]) -> None:
    """Refuses a detector that sees nothing on photographs of known objects, of which `found` are its detections.

    A badly built operator lets the official stack find nothing at all and go on to score 0 (geneval issue 15).
    Raises RunFailed if no score is above the threshold.
    """
    best = max((d.score for objects in found for each in objects.values() for d in each), default=0.0)
    if not best > THRESHOLD:
        raise RunFailed(
            f"the detector finds nothing on {len(found)} photographs: best score {best:.3g}, {THRESHOLD} is needed",
            hint="its weights or its build are broken: no score with it would mean anything",
        )


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file like the official one, JSON a line. Raises MissingAsset, or RunFailed with the line."""
    return [_parsed(path, i, line, Prompt.of) for i, line in _lines(path)]


def read_results(path: Path) -> list[Result]:
    """Detections from a file, JSON a line with `filename`, `metadata`, `details` and, not needed, `correct`.

    That is what the official evaluate_images.py writes: `metadata` is a record of the prompts and `details` maps each
    class to boxes with score (5 numbers), either as JSON or as a string of JSON. It keeps no masks and nothing below
    the thresholds. Raises MissingAsset, or RunFailed with the line.
    """
    return [_parsed(path, i, line, _result) for i, line in _lines(path)]


def _fault(
    clause: Clause,
    found: Sequence[Detection],
    matched: Sequence[Sequence[Detection] | None],
    image: Tensor | None,
    colours: ColourClassifier | None,
) -> str:
    """What `found` lack to be what the clause asks for, or nothing."""
    wanted = f"{clause.count} {clause.name}"
    if len(found) < clause.count:
        return f"{wanted} expected, {len(found)} found"
    if clause.colour is not None:
        if image is None or colours is None:
            raise RunFailed("a prompt asks for a colour: the picture and a classifier of colours are needed")
        seen = colours(image, found, clause.name)
        if seen.count(clause.colour) < clause.count:
            return f"{wanted} {clause.colour} expected, seen {', '.join(seen)}"
    if clause.relation is not None:
        others = matched[clause.target]
        if others is None:
            return f"no target for {clause.name} to be {clause.relation}"
        for one in found:
            for other in others:
                if clause.relation not in (true := relations(one, other)):
                    where = " and ".join(sorted(true)) or "at it"
                    return f"{clause.name} {clause.relation} its target expected, is {where}"
    return ""


def _clause(record: Mapping[str, Any]) -> Clause:
    relation, target = record.get("position", (None, 0))
    return Clause(record["class"], int(record["count"]), record.get("color"), relation, int(target))


def _record(clause: Clause) -> dict[str, Any]:
    colour = {} if clause.colour is None else {"color": clause.colour}
    place = {} if clause.relation is None else {"position": [clause.relation, clause.target]}
    return {"class": clause.name, "count": clause.count, **colour, **place}


def _result(record: Mapping[str, Any]) -> Result:
    metadata, details = (json.loads(v) if isinstance(v := record[k], str) else v for k in ("metadata", "details"))
    objects = {name: [_detection(row) for row in rows] for name, rows in details.items()}
    correct = record.get("correct")
    return Result(record["filename"], Prompt.of(metadata), objects, None if correct is None else bool(correct))


def _detection(row: Sequence[float]) -> Detection:
    left, top, right, bottom, score = map(float, row)
    if not all(map(math.isfinite, (left, top, right, bottom, score))):
        raise ValueError("a box has NaN or infinity")
    return Detection((left, top, right, bottom), score)


_FORM = f"JSON a line: prompts as {PROMPTS.url} has them, detections as its evaluate_images.py writes them"


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingAsset(f"{path}: no such file", hint=f"the prompts are {PROMPTS} from {PROMPTS.url}") from error
    found = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not found:
        raise RunFailed(f"{path}: empty", hint=_FORM)
    return found


def _parsed(path: Path, number: int, line: str, parse: Callable[[Any], T]) -> T:
    try:
        return parse(json.loads(line))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunFailed(
            f"{path}:{number}: not a record of GenEval: {type(error).__name__} {error}", hint=_FORM
        ) from error
