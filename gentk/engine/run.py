"""Run folders: what is asked for (`Job`) and the folder that holds one run (`Run`), locked while a process works in it.

No torch here: whatever is wrong with a folder is said before the slow imports.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from gentk.engine.log import Log, json_text
from gentk.errors import GentkError, RecipeError, RunFailed, Stopped
from gentk.recipe import registry, store
from gentk.recipe.explain import diff, digest, dump
from gentk.recipe.load import Loaded, load
from gentk.recipe.stamp import versions

Mode = Literal["auto", "resume", "fresh"]


@dataclass(frozen=True)
class Job:
    """A command, understood: the recipe and how to run it."""

    task: str
    loaded: Loaded
    out: Path
    mode: Mode = "auto"
    device: str = "auto"
    quiet: bool = False
    dry_run: bool = False
    command: str = ""

    @property
    def recipe(self) -> Any:
        """The validated recipe."""
        return self.loaded.recipe

    @property
    def name(self) -> str:
        """The recipe's name in the store, or its file."""
        return store.name(Path(self.loaded.source).resolve())

    @property
    def subject(self) -> str:
        """What the method works on: the name of the data, teacher, model or samples."""
        what = getattr(self.recipe, registry.subject(self.task))
        return what if isinstance(what, str) else str(what.name)


@dataclass(frozen=True)
class Outcome:
    """What a command answers: the run folder and its figures; `answer` is what plain stdout shows beside the folder."""

    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    run: Path | None = None
    seconds: float = 0.0
    answer: str = ""


def read_info(folder: Path) -> dict[str, Any] | None:
    """run.json of a folder, or None where there is none. Raises GentkError when it is damaged."""
    path = folder / "run.json"
    if not path.is_file():
        return None
    try:
        info = json.loads(path.read_text("utf-8"))
        if not isinstance(info, dict):
            raise ValueError("not an object")
    except ValueError as e:
        raise GentkError(f"{path}: damaged: {e}", hint="--fresh starts again and keeps the old folder aside") from e
    return info


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Run:
    """A run folder in use, as a context manager: locked, its status kept in run.json through every end.

    Raises RecipeError when the folder holds another recipe, is something else, or has nothing to resume; RunFailed when
    another process works on it or the folder cannot be written.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.folder = job, job.out
        self.done: dict[str, Any] | None = None  # run.json of a run that had finished before
        self.info: dict[str, Any] = {}
        self._lock: IO[str] | None = None
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        job, folder = self.job, self.folder
        try:
            if job.mode == "fresh" and (folder / "run.json").exists():
                self._acquire()
                self._set_aside()
            info = read_info(folder)
            if info is not None and self._barren(info):
                info = None  # it failed before its first checkpoint: nothing is lost by starting over in its place
            elif info is None:
                if job.mode == "resume":
                    raise RecipeError(f"--resume: {folder} holds no run", hint="leave --resume out to start one there")
                if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                    raise RecipeError(
                        f"--out: {folder} exists and is not a run folder", hint="choose a new or empty folder"
                    )
                folder.mkdir(parents=True, exist_ok=True)
            self._acquire()
            if info is not None:
                self._check_recipe(info)
                if info.get("status") == "done":
                    self.done = info
                    return self
            self._begin(info)
        except OSError as e:
            self._release()
            raise RunFailed(
                f"{folder}: cannot be written: {e.strerror}", hint="choose another folder with --out"
            ) from e
        except BaseException:
            self._release()
            raise
        return self

    def _acquire(self) -> None:
        path = self.folder / "run.lock"
        handle = path.open("a+", encoding="utf-8")
        try:
            for patience in range(11):
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if patience == 10:
                        raise
                    time.sleep(0.05)  # `gentk runs list` holds it for an instant to see whether a run is alive
        except BlockingIOError as e:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            handle.close()
            raise RunFailed(
                f"{self.folder}: in use by {owner}", hint="wait for it, stop it, or choose another --out"
            ) from e
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}\n")
        handle.flush()
        self._lock = handle

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()  # closing gives the lock back
            self._lock = None

    def _set_aside(self) -> None:
        n = 1
        while (old := self.folder.with_name(f"{self.folder.name}.old-{n}")).exists():
            n += 1
        self.folder.rename(old)
        self._release()

    def _barren(self, info: dict[str, Any]) -> bool:
        whole = any((self.folder / "checkpoints").glob("*/meta.json"))
        return info.get("status") == "failed" and not whole and self.job.mode != "resume"

    def _check_recipe(self, info: dict[str, Any]) -> None:
        if info.get("digest") == digest(self.job.recipe):
            return
        stored = self.folder / "recipe.yaml"
        try:
            rows = diff(load(stored).recipe, self.job.recipe)
            changes = "; ".join(f"{path}: {a} there, {b} here" for path, a, b in rows[:3]) + (
                "; ..." if len(rows) > 3 else ""
            )
        except GentkError:
            changes = "its recipe.yaml cannot be read"
        raise RecipeError(
            f"{self.folder}: the run in this folder has another recipe: {changes}",
            hint="choose another --out, or --fresh to start again and keep the old folder aside",
        )

    def _begin(self, before: dict[str, Any] | None) -> None:
        job = self.job
        self.info = before or {
            "task": job.task,
            "method": job.recipe.method.name,
            "recipe": job.name,
            "subject": job.subject,
            "seed": job.recipe.seed,
            "digest": digest(job.recipe),
            "started": _now(),
            "seconds": 0.0,
            "step": 0,
            "metrics": {},
        }
        self.info |= {"command": job.command, "host": platform.node(), "pid": os.getpid(), "versions": versions()}
        self.info.pop("error", None)
        if before is None:
            _write(self.folder / "recipe.yaml", dump(job.recipe))
        self.log = Log(self.folder, getattr(getattr(job.recipe, "train", None), "track", ()))
        self._seconds = float(self.info["seconds"])
        self.update(status="running")
        self.log.text(f"{'resumed' if before else 'started'}: {job.command}")

    def update(self, **facts: Any) -> None:
        """Writes facts into run.json, atomically."""
        self.info |= facts
        self.info["seconds"] = round(self._seconds + time.monotonic() - self._start, 2)
        _write(self.folder / "run.json", json_text(self.info, indent=1))

    def warn(self, line: str) -> None:
        """A warning for the log."""
        self.log.text(f"warning: {line}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        if self.done is None:
            status = (
                "done" if error is None else "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
            )
            try:
                self.log.text(status if error is None else f"{status}: {type(error).__name__}: {error}")
                self.update(status=status, finished=_now(), **({"error": str(error)} if status == "failed" else {}))
            except OSError as e:  # a full disk: the error that is on its way says more than this one
                if error is None:
                    raise RunFailed(f"{self.folder}: cannot be written: {e.strerror}", hint="free disk space") from e
            finally:
                self.log.close()
        self._release()

    def outcome(self) -> Outcome:
        """The run's answer, also when it had been finished before."""
        info = self.done or self.info
        return Outcome("done", dict(info["metrics"]), self.folder, float(info["seconds"]))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
