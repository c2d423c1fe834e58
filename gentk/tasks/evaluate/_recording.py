"""What every evaluation leaves behind, whatever it measures: a run folder with its answer, result, values and report.

`result.json` says what was compared with what, and under `comparable` all that must be alike for two figures to mean
the same. `values.npz` holds what the figures are made of, by figure, so that `gentk evaluate compare` can pair them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from gentk.engine import inputs, pictures, ranks
from gentk.engine.log import json_text
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import GentkError, MissingAsset
from gentk.recipe.stamp import versions

Unit = Literal["sample", "block", "subset", "split", "prompt"]
_RESULT, _VALUES, _ANSWER = "result.json", "values.npz", "answer.txt"


@dataclass(frozen=True)
class Values:
    """What a figure is made of: (K,) values, one for each `unit`; the figure is their mean, but for blocks.

    A block's value is the figure of a K-th of the samples. `shared` is the part of its samples that one subset has in
    common with another.
    """

    unit: Unit
    values: Tensor
    shared: float = 0.0


@dataclass(frozen=True)
class Finding:
    """What an evaluation found: figures by name, a line for each on stdout, and what stands beside them.

    `facts` go into the result as they are.
    """

    figures: dict[str, float]
    lines: list[str]
    n: int
    n_reference: int | None = None
    comparable: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)
    pictures: dict[str, Image] = field(default_factory=dict)


def record(
    job: Job, files: Mapping[str, Path], measure: Callable[[Run], Finding | None], *, shared: bool = False
) -> Outcome:
    """Measures in the job's run folder and writes what was found; a run that was done already answers as it did.

    `files` are those that the figures depend on: a run that was made from others is done again. The measurement may be
    interrupted anywhere: what it wants to keep for the next time it writes itself. Of several processes rank 0 measures
    alone; with `shared` all do, and those that have nothing to say answer None.
    """
    made_from = inputs.digests(files)
    with ranks.opened(inputs.renewed(job, made_from)) as run:
        if run.done is None:
            run.update(inputs=made_from)
            with listening() as stop:
                stop.anywhere = True
                found = measure(run) if shared else ranks.by_first(lambda: measure(run))
                if found is not None:
                    _write(run, found)
    if run.done is None:
        ranks.reported(run)
    outcome, answer = run.outcome(), ranks.said(run, _ANSWER)
    return Outcome(outcome.status, outcome.metrics, outcome.run, outcome.seconds, answer=answer)


def _write(run: Run, found: Finding) -> None:
    for name, picture in found.pictures.items():
        pictures.save(picture, run.folder / "samples" / f"{name}.png")
    with (run.folder / _VALUES).open("wb") as file:
        arrays: dict[str, Any] = {name: each.values.double().numpy() for name, each in found.values.items()}
        np.savez(file, **arrays)
    result = {
        "figures": found.figures,
        "n": found.n,
        "n_reference": found.n_reference,
        "comparable": found.comparable,
        "values": {name: {"unit": each.unit, "shared": each.shared} for name, each in found.values.items()},
        **found.facts,
        "inputs": run.info["inputs"],
        "seed": run.job.recipe.seed,
        "versions": versions(),
    }
    (run.folder / _RESULT).write_text(json_text(result, indent=1), encoding="utf-8")
    (run.folder / _ANSWER).write_text("\n".join(found.lines) + "\n", encoding="utf-8")
    counts = {"n": float(found.n)} | ({} if found.n_reference is None else {"n_reference": float(found.n_reference)})
    run.update(metrics=found.figures | counts)


@dataclass(frozen=True)
class Recorded:
    """An earlier evaluation, read back: its folder, its result, and what its figures are made of."""

    folder: Path
    result: dict[str, Any]
    values: dict[str, Values]


def recorded(path: Path) -> Recorded:
    """The evaluation in a run folder, or of a result.json. Raises MissingAsset or GentkError, naming the file."""
    folder = path.parent if path.name == _RESULT else path
    file = folder / _RESULT
    if not file.is_file():
        raise MissingAsset(
            f"{path}: not a finished evaluation: no {_RESULT}", hint="gentk evaluate METRIC --out FOLDER makes one"
        )
    try:
        result = json.loads(file.read_text("utf-8"))
        units = result["values"]
        arrays = np.load(folder / _VALUES, allow_pickle=False)
        with arrays:
            values = {
                name: Values(about["unit"], torch.from_numpy(arrays[name]), float(about["shared"]))
                for name, about in units.items()
            }
        result["figures"], result["comparable"], result["n"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise GentkError(
            f"{file}: not the result of an evaluation: {type(error).__name__} {error}", hint="evaluate again"
        ) from error
    return Recorded(folder, result, values)
