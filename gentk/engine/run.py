"""Run folders: what is asked for (`Job`) and the folder that holds one run (`Run`), locked while a process works in it.

No torch here: whatever is wrong with a folder is said before the slow imports.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from gentk.engine import world
from gentk.engine.log import Log, Silent, json_text
from gentk.errors import GentkError, MissingAsset, RecipeError, RunFailed, Stopped
from gentk.recipe import registry, store
from gentk.recipe.explain import CLAIMS, Difference, diff, digest, dump
from gentk.recipe.load import Loaded, load
from gentk.recipe.stamp import versions

Mode = Literal["auto", "resume", "fresh"]

# What a run that got nowhere leaves behind, besides run.json.
_LEFTOVER = re.compile(
    r"run\.lock|recipe\.yaml|log(\.\d+)?\.txt|metrics\.(jsonl|tmp)|\.(run\.json|recipe\.yaml|report\.html)\.\d+(\.tmp)?"
    r"|slurm-\d+(_\d+)?\.out"
)
_QUEUED = re.compile(r"slurm-\d+(_\d+)?\.out")  # Slurm opens its log before the run begins
# Keys that may change under a run that goes on: none of them touches what its steps compute.
_FREE = {
    f"train.{key}"
    for key in ("nan", "keep", "log_every", "sample_every", "checkpoint_every", "track", "checkpointing", "parallel")
}
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


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
        what = getattr(self.recipe, registry.subject(self.task, self.recipe.method.name))
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
        rest = ["recipe.yaml", "metrics.jsonl", "checkpoints/*/meta.json", "export/*.safetensors"]
        whole = [f.relative_to(folder) for each in rest for f in sorted(folder.glob(each)) if f.stat().st_size]
        names = ", ".join(str(f.parent if f.name == "meta.json" else f) for f in whole)
        raise GentkError(
            f"{path}: damaged: {e}",
            hint=(f"whole beside it: {names}; " if names else "")
            + "--fresh starts again and keeps the old folder aside",
        ) from e
    return info


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Run:
    """A run folder in use, as a context manager: locked, its status kept in run.json through every end.

    Raises RecipeError when the folder holds another recipe, is something else, or has nothing to resume; RunFailed when
    another process works on it or the folder cannot be written, now or later. A folder that this process made is taken
    away again when nothing could be run. With `follows`, the facts of the run that another process of it has opened
    (`gentk.engine.ranks`), it touches nothing.
    """

    def __init__(self, job: Job, follows: dict[str, Any] | None = None) -> None:
        # A path through `..` would lead nowhere once --fresh has moved the folder that it goes through.
        self.job, self.folder = job, job.out.resolve() if ".." in job.out.parts else job.out
        self.done: dict[str, Any] | None = None  # run.json of a run that had finished before
        self.info: dict[str, Any] = {}
        self._log: Log | Silent | None = None
        self._follows = follows
        self._lock: IO[str] | None = None
        self._made = False  # whether this process made the folder
        self._marked = False  # whether it was this process that put run.lock there
        self._start = time.monotonic()

    @property
    def log(self) -> Log | Silent:
        """The run's log, open inside the `with` block of an unfinished run."""
        assert self._log is not None
        return self._log

    def __enter__(self) -> Self:
        if self._follows is not None:
            self.info, self.done, self._log = self._follows["info"], self._follows["done"], Silent()
            return self
        try:
            self._open()
        except BaseException as error:
            self._leave(error, self._unwritable(error) if isinstance(error, OSError) else error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        if self._follows is None:
            told = self._unwritable(error) if isinstance(error, OSError) and self._concerns(error) else error
            self._leave(error, told)

    def _open(self) -> None:
        """Locks the folder first and judges it then: what it holds cannot change in between."""
        job, folder = self.job, self.folder
        if job.mode != "resume" or folder.is_dir():
            self._acquire()
        while job.mode == "fresh" and (folder / "run.json").exists():
            self._set_aside()
            self._acquire()
        info = read_info(folder)
        if info is None and job.mode == "resume":
            raise RecipeError(f"--resume: {folder} holds no run", hint="leave --resume out to start one there")
        if info is None and not self._empty():
            raise RecipeError(f"--out: {folder} exists and is not a run folder", hint="choose a new or empty folder")
        if info is None or self._barren(info):
            self._clear()
            info = None  # it failed before its first checkpoint: nothing is lost by starting over in its place
        else:
            self._check_recipe(info)
            if info.get("status") == "done":
                self.done = info
                return
        self._begin(info)

    def _acquire(self) -> None:
        """Makes the folder where there is none and takes its lock."""
        path = self.folder.resolve() / "run.lock"
        owner = ""
        for patience in range(11):
            if patience:
                time.sleep(0.05)  # `gentk runs list` holds it for an instant to see whether a run is alive
            try:
                self._made = _make(path.parent) or self._made
                marked = not path.exists()
                handle = path.open("a+", encoding="utf-8")
            except FileNotFoundError:  # the folder was moved aside or taken away since it was made
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                    self._lock, self._marked = handle, marked
                    break
            except BlockingIOError:
                handle.seek(0)
                owner = handle.read().strip()
            except FileNotFoundError:  # as above: this is the lock of a folder that is elsewhere now
                pass
            handle.close()
        else:
            raise RunFailed(
                f"{self.folder}: in use by {owner or 'another process'}",
                hint="wait for it, stop it, or choose another --out",
            )
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}\n")
        handle.flush()

    def _release(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):  # its line about the owner, on a full disk
                self._lock.close()  # closing gives the lock back
            self._lock = None

    def _set_aside(self) -> None:
        place = self.folder.resolve()  # `.` has no name to add to
        if Path.cwd().is_relative_to(place):
            raise RecipeError(
                f"--out {self.job.out}: --fresh cannot move the working folder aside",
                hint="give the command from outside the run folder",
            )
        n = 1
        while (old := place.with_name(f"{place.name}.old-{n}")).exists():
            n += 1
        place.rename(old)
        self._release()

    def _empty(self) -> bool:
        """Whether nothing is there but leftovers. Without a lock of gentk's beside it, a recipe.yaml is the user's."""
        names = {path.name for path in self.folder.iterdir() if not _QUEUED.fullmatch(path.name)}
        return names == {"run.lock"} if self._marked else all(map(_LEFTOVER.fullmatch, names))

    def _barren(self, info: dict[str, Any]) -> bool:
        whole = any((self.folder / "checkpoints").glob("*/meta.json"))
        return info.get("status") == "failed" and not whole and self.job.mode != "resume"

    def _clear(self) -> None:
        """Takes away what the report would show as this run's."""
        for pattern in ("metrics.jsonl", "samples/*.png", "best/*.safetensors"):
            for path in self.folder.glob(pattern):
                path.unlink()

    def _check_recipe(self, info: dict[str, Any]) -> None:
        """Compares what the recipes compute as gentk reads them today: a new key with its default is no difference."""
        here = self.job.recipe
        rows: list[Difference] = []
        try:
            there = load(self.folder / "recipe.yaml").recipe
        except GentkError:
            if info.get("digest") == digest(here):
                return
            changes = "its recipe.yaml cannot be read"
        else:
            if digest(there) == digest(here):
                return
            rows = [row for row in diff(there, here) if row.path.partition(".")[0] not in CLAIMS]
            if info.get("status") != "done" and all(_free(row.path) for row in rows):
                return
            changes = "; ".join(f"{path}: {a} there, {b} here" for path, a, b in rows[:3])
        raise RecipeError(
            f"{self.folder}: the run in this folder has another recipe: {changes}" + ("; ..." if rows[3:] else ""),
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
            "started": _now(),
            "seconds": 0.0,
            "step": 0,
            "metrics": {},
        }
        self.info |= {"command": job.command, "host": platform.node(), "pid": os.getpid(), "versions": versions()}
        self.info["world_size"] = world.size()
        self.info["digest"] = digest(job.recipe)
        self.info.pop("error", None)
        self._seconds = float(self.info["seconds"])
        _write(self.folder / "recipe.yaml", dump(job.recipe))
        self.update(status="running")
        self._log = Log(self.folder, getattr(getattr(job.recipe, "train", None), "track", ()))
        self.log.text(f"{'resumed' if before else 'started'}: {job.command}")

    def update(self, **facts: Any) -> None:
        """Writes facts into run.json, atomically."""
        self.info |= facts
        if self._follows is not None:
            return
        self.info["seconds"] = round(self._seconds + time.monotonic() - self._start, 2)
        _write(self.folder / "run.json", json_text(self.info, indent=1))

    def warn(self, line: str) -> None:
        """A warning for the log."""
        self.log.text(f"warning: {line}")

    def _leave(self, error: BaseException | None, told: BaseException | None) -> None:
        """Ends the run, gives the lock back and raises `told` if it says what `error` means to the user."""
        try:
            if self.info:
                self._end(told)
            if isinstance(told, RecipeError | MissingAsset):
                self._withdraw()
        finally:
            self._release()
        if told is not None and told is not error:
            raise told from error

    def _end(self, error: BaseException | None) -> None:
        status = "done" if error is None else "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
        facts = {"status": status, "finished": _now()} | ({"error": str(error)} if status == "failed" else {})
        line = status if error is None else f"{status}: {type(error).__name__}: {error}"
        acts: list[Callable[[], None]] = [lambda: self.update(**facts)]
        if self._log is not None:
            log = self._log
            acts += [lambda: log.text(line), log.close]
        faults: list[RunFailed] = []
        for act in acts:
            try:
                act()
            except RunFailed as e:
                faults.append(e)
            except OSError as e:
                faults.append(self._unwritable(e))
        if error is None and faults:  # else the error that is on its way says more than these
            raise faults[0]

    def _withdraw(self) -> None:
        """Takes back what this process brought into being, if nothing was run: the folder, or the lock in another's."""
        with contextlib.suppress(OSError):  # tidiness, not worth an error
            if self._lock is None:
                return
            names = {path.name for path in self.folder.iterdir()}
            if self._made and all(map(_LEFTOVER.fullmatch, names - {"run.json"})):
                self.info = {}
                for name in sorted(names, key="run.lock".__eq__):  # the lock last: it guards the others
                    (self.folder / name).unlink()
                self.folder.resolve().rmdir()
            elif self._marked and "run.json" not in names:
                (self.folder / "run.lock").unlink()

    def _concerns(self, error: OSError) -> bool:
        """Whether an error is about this folder or a disk; any other is a bug."""
        named = isinstance(error.filename, str) and Path(error.filename).resolve().is_relative_to(self.folder.resolve())
        return named or error.errno in _DISK

    def _unwritable(self, error: OSError) -> RunFailed:
        remedy = "free disk space" if error.errno in _DISK else "make it writable"
        return RunFailed(
            f"{error.filename or self.folder}: cannot be written: {error.strerror or error}",
            hint=f"{remedy} and give the same command again, or choose another folder with --out",
        )

    def outcome(self) -> Outcome:
        """The run's answer, also when it had been finished before."""
        info = self.done or self.info
        return Outcome("done", dict(info["metrics"]), self.folder, float(info["seconds"]))


def _make(folder: Path) -> bool:
    """Makes the folder; False where it was there. Raises RecipeError where something else has its name."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError as e:
        if not folder.is_dir():
            raise RecipeError(
                f"--out: {folder} exists and is not a run folder", hint="choose a new or empty folder"
            ) from e
        return False
    return True


def _free(path: str) -> bool:
    return path in _FREE or path.partition(".")[0] == "measure"


def _write(path: Path, text: str) -> None:
    """Replaces a file, whole or not at all, even through a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
