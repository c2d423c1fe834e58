"""Run folders: locked while in use, their status true through every end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gentk.engine.run import Job, Run, read_info
from gentk.errors import GentkError, RecipeError, RunFailed, Stopped
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
    with pytest.raises(GentkError, match=r"run\.json: damaged"), Run(job()):
        pass


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
