"""`gentk runs show --follow`: every row once, through a resume, until the run has ended."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gentk.cli import following, runs
from gentk.engine.log import Log


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run under way: its lock is held."""
    (tmp_path / "run.json").write_text(json.dumps({"status": "running"}))
    (tmp_path / "recipe.yaml").write_text("train: {steps: 100}\n")
    with (tmp_path / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path


def followed(run: Path, *acts: Callable[[], object]) -> str:
    """Follows, doing one thing at each pause, and ends the run at the last."""
    waiting = iter(acts)

    def pause(_: float) -> None:
        act = next(waiting, None)
        if act is None:
            (run / "run.json").write_text(json.dumps({"status": "done"}))
        else:
            act()

    return following.follow(run, sleep=pause)


def row(run: Path, step: int, **values: float) -> Callable[[], None]:
    def write() -> None:
        with Log(run) as log:
            log.metrics(step, 16 * step, values)

    return write


def cut(run: Path, step: int) -> Callable[[], None]:
    def act() -> None:
        with Log(run) as log:
            log.truncate(step)

    return act


def test_rows_come_once_with_the_time_that_is_left(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row(run, 10, loss=3.0)()
    row(run, 20, loss=2.0, steps_per_s=4.0, memory_mb=5)()
    assert followed(run, row(run, 40, loss=1.0, steps_per_s=2.0), lambda: None, row(run, 100, loss=0.5)) == "done"
    assert capsys.readouterr().out.splitlines() == [
        "step 20/100  20%  20 s left  loss 2",
        "step 40/100  40%  30 s left  loss 1",
        "step 100/100  100%  loss 0.5",
    ]


def test_steps_that_a_resumed_run_does_again_are_not_shown_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row(run, 10, loss=3.0)()
    resume = [cut(run, 10), row(run, 20, loss=2.5), row(run, 30, loss=2.0)]
    followed(run, row(run, 20, loss=2.5), *resume)
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["10/100", "20/100", "30/100"]


def test_half_a_line_is_waited_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def part(text: str) -> Callable[[], None]:
        def write() -> None:
            with (run / "metrics.jsonl").open("a") as file:
                file.write(text)

        return write

    followed(run, part('{"step": 10, "images": 1'), part('60, "loss": 7}\n'), part("nonsense\n"))
    assert capsys.readouterr().out == "step 10/100  10%  loss 7\n"


def test_a_run_without_metrics_or_with_its_process_gone_ends_it(run: Path, tmp_path: Path) -> None:
    assert followed(run) == "done"
    dead = tmp_path / "dead"
    dead.mkdir()
    (dead / "run.json").write_text(json.dumps({"status": "running"}))
    assert following.follow(dead) == "interrupted"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"status": "done", "task": "train"}))
    row(tmp_path, 7, loss=1.5)()
    result = CliRunner().invoke(runs.app, ["show", ".", "--follow"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("step 7  loss 1.5\n\n")
    assert "status" in result.stdout
    assert CliRunner().invoke(runs.app, ["show", ".", "--follow", "--json"]).exit_code == 2
