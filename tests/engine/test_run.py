"""Run folders: locked while in use, their status true through every end."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gentk.engine import run as module
from gentk.engine.run import Job, Run, read_info
from gentk.errors import GentkError, MissingAsset, RecipeError, RunFailed, Stopped
from gentk.recipe.explain import digest
from gentk.recipe.load import load
from tests.conftest import DENOISER

Make = Callable[..., Job]


@pytest.fixture
def job(write: Callable[[str, str], Path], tmp_path: Path) -> Make:
    recipe = write("recipe.yaml", DENOISER)

    def make(mode: str = "auto", out: str = "run", sets: tuple[str, ...] = ()) -> Job:
        return Job("train", load(recipe, sets), tmp_path / out, mode, command="gentk train denoiser")  # type: ignore[arg-type]

    return make


def status(folder: Path) -> str:
    info = read_info(folder)
    assert info is not None
    return str(info["status"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, "done"),
        (Stopped("x"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (RunFailed("x"), "failed"),
        (ZeroDivisionError(), "failed"),
    ],
)
def test_every_end_is_recorded(job: Make, error: BaseException | None, expected: str) -> None:
    def session() -> None:
        with Run(job()) as run:
            assert status(run.folder) == "running"
            if error:
                raise error

    if error is None:
        session()
    else:
        with pytest.raises(type(error)) as caught:
            session()
        assert caught.value is error
    assert status(job().out) == expected


def test_seconds_add_up_over_sessions(job: Make) -> None:
    def session() -> None:
        with Run(job()) as run:
            run._start -= 10  # as if ten seconds had passed
            raise Stopped("x")

    for _ in range(2):
        with pytest.raises(Stopped):
            session()
    info = read_info(job().out)
    assert info is not None
    assert 20 <= info["seconds"] < 25


def test_a_second_process_gets_a_clear_error_and_the_first_goes_on(job: Make) -> None:
    code = (
        "import fcntl, sys\n"
        "f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "f.truncate(0); f.write('process 1 on node7'); f.flush()\n"
        "print('locked', flush=True); sys.stdin.read()\n"
    )
    with pytest.raises(Stopped), Run(job()):
        raise Stopped("x")
    words = [sys.executable, "-c", code, str(job().out / "run.lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        before = (job().out / "run.json").read_bytes()
        for mode in ("auto", "resume", "fresh"):
            with pytest.raises(RunFailed, match=r"in use by .*process 1 on node7"), Run(job(mode)):
                pass
        assert (job().out / "run.json").read_bytes() == before
        other.communicate()
    with Run(job()) as run:  # the lock goes with the process that held it
        assert f"process {os.getpid()}" in (run.folder / "run.lock").read_text()


def test_a_finished_run_is_not_touched(job: Make) -> None:
    with Run(job()) as run:
        run.update(metrics={"fd": 1.0})
    before = {p: p.read_bytes() for p in job().out.iterdir() if p.name != "run.lock"}
    with Run(job()) as again:
        assert again.done is not None
        assert again.outcome().metrics == {"fd": 1.0}
    assert {p: p.read_bytes() for p in job().out.iterdir() if p.name != "run.lock"} == before


def test_resume_needs_a_run_and_fresh_moves_it_aside(job: Make, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds no run"), Run(job("resume")):
        pass
    with Run(job("fresh")):
        pass
    with Run(job("fresh")) as run:
        assert run.done is None
    assert status(tmp_path / "run.old-1") == "done"


def test_another_recipe_is_refused_with_what_differs(job: Make) -> None:
    with pytest.raises(Stopped), Run(job()):
        raise Stopped("x")
    with pytest.raises(RecipeError, match=r"optim.lr: 0.001 there, 0.01 here"), Run(job(sets=("optim.lr=1e-2",))):
        pass
    assert status(job().out) == "stopped"


def test_a_run_that_failed_before_its_first_checkpoint_gives_its_place_up(job: Make) -> None:
    with pytest.raises(RunFailed), Run(job()):
        raise RunFailed("no data")
    with Run(job(sets=("optim.lr=1e-2",))) as run:
        assert run.done is None
    assert "0.01" in (job().out / "recipe.yaml").read_text()


def test_a_failed_run_with_a_checkpoint_keeps_its_place(job: Make) -> None:
    def session() -> None:
        with Run(job()) as run:
            (run.folder / "checkpoints" / "00000004").mkdir(parents=True)
            (run.folder / "checkpoints" / "00000004" / "meta.json").write_text("{}")
            raise RunFailed("later")

    with pytest.raises(RunFailed, match="later"):
        session()
    with pytest.raises(RecipeError, match="another recipe"), Run(job(sets=("optim.lr=1e-2",))):
        pass


def test_damaged_run_json_is_named(job: Make) -> None:
    with Run(job()):
        pass
    (job().out / "run.json").write_text('{"status": ')
    (job().out / "checkpoints" / "00000004").mkdir(parents=True)
    (job().out / "checkpoints" / "00000004" / "meta.json").write_text("{}")
    with pytest.raises(GentkError, match=r"run\.json: damaged") as caught, Run(job()):
        pass
    assert "whole beside it: recipe.yaml, checkpoints/00000004; --fresh" in caught.value.hint
    with Run(job("fresh")) as run:
        assert run.done is None


def test_run_json_says_what_is_needed_to_reproduce(job: Make) -> None:
    with Run(job()):
        pass
    info = json.loads((job().out / "run.json").read_text())
    assert {
        "task",
        "method",
        "recipe",
        "seed",
        "digest",
        "versions",
        "command",
        "host",
        "started",
        "finished",
    } <= info.keys()
    assert {"python", "gentk", "torch", "numpy"} <= info["versions"].keys()


def test_leftovers_of_gentk_count_as_an_empty_folder(job: Make) -> None:
    folder = job().out
    folder.mkdir()
    for name in ("run.lock", "recipe.yaml", "log.txt", ".run.json.17.tmp"):
        (folder / name).write_text("")
    (folder / "metrics.jsonl").write_text('{"step": 3}\n')
    with Run(job()) as run:
        assert status(run.folder) == "running"
        assert (folder / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("name", ["thesis.tex", "recipe.yaml", ".git"])
def test_what_is_not_gentks_is_refused_and_left_as_it_was(job: Make, name: str) -> None:
    folder = job().out
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(RecipeError, match="is not a run folder"), Run(job()):
        pass
    assert [(p.name, p.read_text()) for p in folder.iterdir()] == [(name, "mine")]


def test_a_file_in_the_folders_place_is_refused(job: Make) -> None:
    job().out.write_text("mine")
    with pytest.raises(RecipeError, match="is not a run folder"), Run(job()):
        pass


def test_nothing_is_judged_before_the_lock_is_held(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(folder: Path) -> None:
        with (folder / "run.lock").open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(module, "read_info", read)
    with Run(job()):
        pass


def test_resume_makes_no_folder(job: Make) -> None:
    with pytest.raises(RecipeError, match="holds no run"), Run(job("resume")):
        pass
    assert not job().out.exists()


@pytest.mark.parametrize("existed", [True, False])
def test_a_missing_listener_does_not_block_a_retry(job: Make, monkeypatch: pytest.MonkeyPatch, existed: bool) -> None:
    if existed:
        job().out.mkdir()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingAsset, match="wandb"), Run(job(sets=("train.track=[wandb]",))):
        pass
    assert job().out.exists() == existed
    assert not existed or status(job().out) == "failed"
    with Run(job()) as run:
        assert run.done is None


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free disk space"),
        (PermissionError(errno.EACCES, "Permission denied", "run/samples/a.png"), "make it writable"),
    ],
)
def test_a_disk_that_fails_is_no_bug(
    job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, remedy: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFailed, match=f"run.*: cannot be written: {error.strerror}") as caught, Run(job()):
        raise error
    assert remedy in caught.value.hint
    assert caught.value.__cause__ is error
    assert status(job().out) == "failed"


def test_an_error_of_elsewhere_stays_a_bug(job: Make) -> None:
    bug = FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/x")
    with pytest.raises(FileNotFoundError) as caught, Run(job()):
        raise bug
    assert caught.value is bug


@pytest.mark.parametrize("error", [ZeroDivisionError(), None])
def test_a_full_disk_at_the_end_hides_no_error_and_keeps_no_lock(
    job: Make, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def no_log(_: str) -> None:
        raise RunFailed("log.txt: cannot be written")

    def session() -> None:
        with Run(job()) as run:
            monkeypatch.setattr(run.log, "text", no_log)
            monkeypatch.setattr(module, "_write", full)
            if error:
                raise error

    with pytest.raises(ZeroDivisionError if error else RunFailed):
        session()
    with (job().out / "run.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_default_that_came_later_is_no_other_recipe(job: Make) -> None:
    with pytest.raises(Stopped), Run(job()):
        raise Stopped("x")
    recipe, info = job().out / "recipe.yaml", job().out / "run.json"
    old = [line for line in recipe.read_text().splitlines(keepends=True) if "accumulate" not in line]
    recipe.write_text("".join(old))
    info.write_text(json.dumps(json.loads(info.read_text()) | {"digest": "00000000"}))
    with pytest.raises(Stopped), Run(job()):
        raise Stopped("x")
    assert "accumulate: 1" in recipe.read_text()
    recipe.write_text("task: none of these")  # then the digest decides
    with Run(job()) as run:
        assert run.done is None


def test_what_no_step_depends_on_may_change_until_the_run_is_done(job: Make) -> None:
    with pytest.raises(Stopped), Run(job()):
        raise Stopped("x")
    other = ("measure.n=32", "train.keep=1", "train.nan=skip", "train.log_every=2")
    with Run(job(sets=other)) as run:
        assert run.info["digest"] == digest(run.job.recipe)
    assert "keep: 1" in (job().out / "recipe.yaml").read_text()
    with pytest.raises(RecipeError, match=r"measure.n: 32 there, 64 here"), Run(job(sets=other[1:])):
        pass


def test_listed_differences_are_those_that_count(job: Make) -> None:
    with pytest.raises(Stopped), Run(job()):
        raise Stopped("x")
    with pytest.raises(RecipeError) as caught, Run(job(sets=("about=other", "train.steps=13"))):
        pass
    assert str(caught.value).endswith("another recipe: train.steps: 12 there, 13 here")


def test_run_json_reaches_the_disk_before_it_counts(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    with Run(job()) as run:
        assert {(run.folder / name).stat().st_ino for name in ("run.json", "recipe.yaml")} <= synced


def test_the_lock_of_a_folder_moved_aside_does_not_count(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    moved, lock = job().out.with_name("moved"), fcntl.flock

    def slow(handle: object, how: int) -> None:
        if not moved.exists():
            job().out.rename(moved)  # by another process, between opening the lock and getting it
        lock(handle, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", slow)
    with Run(job()) as run:
        assert status(run.folder) == "running"
    assert [p.name for p in moved.iterdir()] == ["run.lock"]


@pytest.mark.parametrize("error", [RecipeError("x"), MissingAsset("x"), RunFailed("x")])
def test_a_run_that_could_not_begin_leaves_no_folder(job: Make, error: GentkError) -> None:
    with pytest.raises(type(error)) as caught, Run(job()):
        raise error
    assert caught.value is error
    assert job().out.exists() == isinstance(error, RunFailed)


def test_a_folder_with_work_in_it_stays(job: Make) -> None:
    def session() -> None:
        with Run(job()) as run:
            (run.folder / "samples.npz").write_text("")
            raise MissingAsset("x")

    with pytest.raises(MissingAsset):
        session()
    assert status(job().out) == "failed"


def test_fresh_says_that_it_cannot_move_the_working_folder(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(job()):
        pass
    (job().out / "samples").mkdir()
    for place, out in ((job().out, "."), (job().out / "samples", "..")):
        monkeypatch.chdir(place)
        inside = Job("train", job().loaded, Path(out), "fresh")
        with pytest.raises(RecipeError, match="--fresh cannot move the working folder aside"), Run(inside):
            pass
    assert status(job().out) == "done"


def test_fresh_names_the_old_folder_by_its_real_name(job: Make, tmp_path: Path) -> None:
    with Run(job()):
        pass
    (job().out / "samples").mkdir()
    with Run(Job("train", job().loaded, job().out / "samples" / "..", "fresh")):
        pass
    assert status(tmp_path / "run.old-1") == "done"


def test_a_failed_runs_pictures_and_metrics_make_way(job: Make) -> None:
    def session() -> None:
        with Run(job()) as run:
            (run.folder / "samples").mkdir()
            (run.folder / "samples" / "samples-000003.png").write_text("")
            run.log.metrics(3, 48, {"loss": 1.0})
            raise RunFailed("x")

    with pytest.raises(RunFailed):
        session()
    with Run(job(sets=("optim.lr=1e-2",))) as run:
        assert not any((run.folder / "samples").iterdir())
        assert (run.folder / "metrics.jsonl").read_text() == ""
