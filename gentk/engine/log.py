"""The log of a run: `metrics.jsonl` and `log.txt`, always; TensorBoard and W&B, if asked for, listen beside them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from gentk.errors import MissingAsset, RecipeError, RunFailed, did_you_mean

LARGEST = 2**22
"""Bytes of log.txt at which it becomes log.1.txt, log.1.txt log.2.txt, and so on."""

OLDER = 4
"""Files of an older log that are kept."""


class Listener(Protocol):
    """Something that hears every line of metrics."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values logged at `step`."""

    def close(self) -> None:
        """Finish; nothing follows."""


class Log:
    """Writes the metrics and the text of one run folder. Rank 0 only; a context manager.

    `track` names listeners ("tensorboard", "wandb"). An absent package raises MissingAsset here, before the run starts.
    A line that a kill left half written is removed when the folder is opened again. The text is kept in files of
    `LARGEST` bytes, the newest `OLDER` of them beside log.txt; metrics are never thrown away. Writing raises RunFailed
    on a full or unwritable disk.
    """

    def __init__(self, folder: Path, track: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._listeners = [listener(name, folder) for name in track]
        self._path = folder / "metrics.jsonl"
        self._rewrite(_complete(self._path))
        self._metrics = self._path.open("a", encoding="utf-8")
        self._text = (folder / "log.txt").open("a", encoding="utf-8")

    def metrics(self, step: int, images: int, values: Mapping[str, float]) -> None:
        """Append one JSON line; a value that is NaN or infinite becomes null."""
        plain = {name: float(value) for name, value in values.items()}  # numpy's and torch's numbers are not JSON's
        _append(self._metrics, json_text({"step": step, "images": images, **plain}))
        for each in self._listeners:
            each.scalars(step, plain)

    def text(self, line: str) -> None:
        """Append to log.txt with the local time; further lines of `line` are indented under the first."""
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        _append(self._text, f"{now}  {line}".replace("\n", "\n    "))
        if self._text.tell() > LARGEST:
            self._rotate()

    def truncate(self, step: int) -> None:
        """Forget the lines of metrics beyond `step`: a run that resumes from there writes them again."""
        self._metrics.close()
        self._rewrite([line for line in _complete(self._path) if json.loads(line)["step"] <= step])
        self._metrics = self._path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the files and the listeners."""
        for file in (self._metrics, self._text):
            with contextlib.suppress(OSError):  # what a full disk would not take has been told when it was written
                file.close()
        for each in self._listeners:
            each.close()

    def __enter__(self) -> Self:
        """The log itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        """Close it, however the run ended."""
        self.close()

    def _rotate(self) -> None:
        """Begin a new log.txt; where the old one cannot be renamed, go on in it."""
        path = self._path.with_name("log.txt")
        names = [path, *(path.with_name(f"log.{k}.txt") for k in range(1, OLDER + 1))]
        with contextlib.suppress(OSError):
            for older, newer in reversed(list(zip(names[1:], names, strict=False))):
                if newer.exists():
                    newer.replace(older)
            fresh = path.open("a", encoding="utf-8")
            self._text.close()
            self._text = fresh

    def _rewrite(self, lines: Sequence[str]) -> None:
        """Replace the file by these lines, whole or not at all; untouched where nothing changes."""
        text = "".join(line + "\n" for line in lines)
        if not self._path.exists() or self._path.read_bytes() == text.encode():
            return
        fresh = self._path.with_suffix(".tmp")
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)


class Silent:
    """The log of a process that follows: another one writes."""

    def metrics(self, step: int, images: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def text(self, line: str) -> None:
        """Nothing."""

    def truncate(self, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, oldest first; empty where there is none, and without a torn last line.

    Values that were not finite are None. Raises RunFailed naming the line where the file is damaged before its end.
    """
    return [json.loads(line) for line in _complete(path)]


def _complete(path: Path) -> list[str]:
    """The lines that hold a whole JSON object. Only the last may fail to: a kill came while it was written."""
    if not path.exists():
        return []
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not _is_row(line):
            if number < len(lines):
                raise RunFailed(
                    f"{path}:{number}: not a line of metrics; the file is damaged",
                    hint="remove that line, or start the run again with --fresh",
                )
            return lines[:-1]
    return lines


def _is_row(line: str) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and isinstance(row.get("step"), int)


def _append(file: TextIO, line: str) -> None:
    try:
        file.write(line + "\n")
        file.flush()  # whoever watches the file sees the line now, and a kill loses none before it
    except OSError as error:
        raise RunFailed(
            f"{file.name}: cannot write: {error.strerror}",
            hint="make room, then give the same command again: it goes on from the last checkpoint",
        ) from error


def json_text(value: Any, indent: int | None = None) -> str:
    """Strict JSON, in which NaN and infinities are null: JSON has no such numbers, and many readers refuse the file."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def tidy(value: float | None) -> str:
    """A number for eyes: four significant digits, whole numbers in full, `-` for none. `1234.5678` is `1235`."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-4 <= abs(value) < 1e15:
        digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, power = f"{value:.3e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"


def duration(seconds: float) -> str:
    """`3.1 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if seconds < 10:
        return f"{tidy(round(seconds, 1))} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def listener(name: str, folder: Path) -> Listener:
    """The listener of that name. Raises MissingAsset where its package is absent, RecipeError for an unknown name."""
    makers: dict[str, Callable[[Path], Listener]] = {"tensorboard": _TensorBoard, "wandb": _Wandb}
    if name not in makers:
        raise RecipeError(f"train.track: unknown listener `{name}`{did_you_mean(name, makers)}")
    try:
        return makers[name](folder)
    except ImportError as error:
        raise MissingAsset(
            f"train.track: {name} needs the package {name}, which is not installed", hint="pip install gentk[track]"
        ) from error


class _TensorBoard:
    """Writes `FOLDER/tensorboard`. Opened at the first line, so that a resumed run hides what it writes again."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make, self._folder = SummaryWriter, folder / "tensorboard"
        self._writer: Any = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


# Numbers are what is sent: no command line, no output, no code, no differences from the last commit.
_PRIVATE = {"console": "off", "disable_code": True, "disable_git": True, "x_disable_meta": True}


class _Wandb:
    """One W&B run per run folder: its id is kept there, so that a resumed run goes on in the same one."""

    def __init__(self, folder: Path) -> None:
        # Not `import wandb`: a folder of that name, which W&B itself leaves behind, would satisfy it.
        from wandb import init

        kept = folder / "wandb.id"
        if not kept.exists():
            kept.write_text(secrets.token_hex(8), "utf-8")
        name = kept.read_text("utf-8").strip()
        self._run = init(
            project="gentk", name=folder.name, id=name, resume="allow", dir=str(folder), settings=dict(_PRIVATE)
        )
        # W&B's own step may not go back, which resuming from a checkpoint does; ours may.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()
