"""`gentk runs show --follow`: the lines of a run's metrics as they come, with the time that is left, until it ends."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gentk.cli import console
from gentk.engine import report
from gentk.engine.log import duration, tidy
from gentk.engine.run import read_info

_WINDOW = 20  # rows over which the speed is averaged


def follow(folder: Path, *, every: float = 1.0, sleep: Callable[[float], None] = time.sleep) -> str:
    """Prints each row of the run's metrics once and returns the run's status when it runs no more.

    The rows that are there already are passed over but for the last. A run that is killed and resumed meanwhile is
    followed on: rows of steps that it does again are not shown again.
    """
    reader = _Reader(folder / "metrics.jsonl")
    steps = _steps(folder)
    last = -1
    marks: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
    shown = False
    while True:
        info = read_info(folder) or {}
        state = report.status(folder, info)  # before the rows: what ends now has written all of them
        rows = [row for row in reader.rows() if row["step"] > last or (row["step"] == last and _is_eval(row))]
        for row in rows if shown else rows[-1:]:
            marks.append((time.monotonic(), row["step"]))
            console.out(_line(row, steps, marks))
        if rows:
            last, shown = rows[-1]["step"], True
        if state != "running":
            return state
        sleep(every)


class _Reader:
    """Whole rows of a growing file, each once; all of them again where the file was replaced or cut."""

    def __init__(self, path: Path) -> None:
        self.path, self.place, self.node = path, 0, -1

    def rows(self) -> list[dict[str, Any]]:
        try:
            status = self.path.stat()
            if status.st_ino != self.node or status.st_size < self.place:
                self.place, self.node = 0, status.st_ino
            with self.path.open("rb") as file:
                file.seek(self.place)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]  # the last line may still be on its way
        self.place += len(whole)
        found = []
        for line in whole.decode("utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # a torn line that the resumed run takes away
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                found.append(row)
        return found


def _steps(folder: Path) -> int | None:
    train = report.read_recipe(folder)[0].get("train")
    steps = train.get("steps") if isinstance(train, dict) else None
    return steps if isinstance(steps, int) else None


def _is_eval(row: Mapping[str, Any]) -> bool:
    return any(name.startswith("eval/") for name in row)


def _line(row: Mapping[str, Any], steps: int | None, marks: deque[tuple[float, int]]) -> str:
    """`step 120/400  30%  2 min 10 s left  fake/loss 0.12  generator/loss 1.3`."""
    step = row["step"]
    parts = [f"step {step}/{steps}  {100 * step // steps}%" if steps else f"step {step}"]
    speed = row.get("steps_per_s")
    if not isinstance(speed, int | float):
        (then, first), (now, latest) = marks[0], marks[-1]
        speed = (latest - first) / (now - then) if now > then else 0
    if steps and speed > 0 and step < steps:
        parts.append(f"{duration((steps - step) / speed)} left")
    figures = {k: v for k, v in row.items() if k == "loss" or k.endswith("/loss") or k.startswith("eval/")}
    parts += [f"{name} {tidy(value)}" for name, value in figures.items()]
    return "  ".join(parts)
