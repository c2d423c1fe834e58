"""What several processes do when one of them fails, stops, dies, hangs or was given something else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gentk.engine import dist, loop, world
from gentk.engine.stop import StopRequest
from gentk.errors import MissingAsset, RecipeError, RunFailed
from gentk.recipe.schema import Ema, Train
from tests.conftest import DENOISER
from tests.engine.team import Team, command
from tests.engine.tiny import Folder, Tiny

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
LONG = DENOISER.replace("steps: 12", "steps: 100000").replace("log_every: 4", "log_every: 1")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(LONG.replace("checkpoint_every: 4", "checkpoint_every: 50"))
    return path


def started(recipe: Path, out: Path, sets: tuple[str, ...] = ("measure=null",)) -> Team:
    """Two processes that train, once they have logged something."""
    team = Team(2, out.with_name(f"{out.name}-said"), lambda _: command("train", recipe, out, sets))
    until(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size > 0)
    return team


def until(true: Callable[[], bool], limit: float = 60) -> None:
    end = time.monotonic() + limit
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def info(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "run.json").read_text())
    return found


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_one_stops_all_with_a_checkpoint(name: str, recipe: Path, tmp_path: Path) -> None:
    team = started(recipe, tmp_path / "run")
    os.kill(team.pids[1], getattr(signal, name))
    members = team.wait()
    assert [m.code for m in members] == [75, 75], [m.said for m in members]
    assert f"stopped by {name}" in members[0].said
    found = info(tmp_path / "run")
    assert found["status"] == "stopped"
    assert (tmp_path / "run" / "checkpoints" / f"{found['step']:08d}" / "meta.json").exists()


def test_stopped_and_resumed_is_the_same_run_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    team = started(recipe, tmp_path / "cut")
    os.kill(team.pids[0], signal.SIGTERM)
    assert [m.code for m in team.wait()] == [75, 75]
    steps = int(str(info(tmp_path / "cut")["step"])) + 3
    sets = (f"train.steps={steps}", "measure=null")
    recipe.write_text(recipe.read_text().replace("steps: 100000", f"steps: {steps}"))
    kept = tmp_path / "cut" / "recipe.yaml"
    kept.write_text(kept.read_text().replace("steps: 100000", f"steps: {steps}"))
    for out in ("cut", "whole"):
        act = partial(_train, recipe, tmp_path / out, sets)
        members = Team(2, tmp_path / f"{out}-again", act).wait()
        assert [m.code for m in members] == [0, 0], [m.said for m in members]
    first, second = (load_file(tmp_path / out / "export" / "denoiser.safetensors") for out in ("cut", "whole"))
    assert all(first[name].equal(second[name]) for name in second)


def _train(recipe: Path, out: Path, sets: tuple[str, ...], _rank: int) -> None:
    command("train", recipe, out, sets)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_does_not_hang_the_other(victim: int, recipe: Path, tmp_path: Path) -> None:
    team = started(recipe, tmp_path / "run")
    until(lambda: (tmp_path / "run" / "checkpoints" / "00000050" / "meta.json").exists())
    os.kill(team.pids[victim], signal.SIGKILL)
    members = team.wait(30)
    assert members[victim].code == -signal.SIGKILL
    other = members[1 - victim]
    assert other.code == 1
    assert f"rank {1 - victim}: rank {victim} (process {team.pids[victim]} on " in other.said
    assert "is gone" in other.said
    assert "the same command goes on from the last checkpoint" in other.said
    if victim == 1:
        assert info(tmp_path / "run")["status"] == "failed"
    before = max((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    again = started(recipe, tmp_path / "run")  # and the folder is free
    until(lambda: max((tmp_path / "run" / "checkpoints").glob("[0-9]*/meta.json")).parent > before)
    os.kill(again.pids[0], signal.SIGTERM)
    assert [m.code for m in again.wait()] == [75, 75]


def test_a_process_that_hangs_is_not_waited_for_without_end(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENTK_DIST_TIMEOUT", "4")
    team = started(recipe, tmp_path / "run")
    os.kill(team.pids[1], signal.SIGSTOP)
    until(lambda: info(tmp_path / "run")["status"] == "failed", 40)
    os.kill(team.pids[1], signal.SIGKILL)
    members = team.wait()
    assert members[0].code == 1
    assert "rank 0: waited 4 s in vain for another process" in members[0].said
    assert "GENTK_DIST_TIMEOUT" in members[0].said


class Half(Tiny):
    """Fails in one process: a NaN in its rows of the data from some step on, or a fault of its own."""

    def __init__(self, rank: int, fault: Exception | None) -> None:
        super().__init__()
        self.rank, self.fault = rank, fault

    def _a(self, batch, gen):  # type: ignore[no-untyped-def]
        loss, figures = super()._a(batch, gen)
        if self.rank == 1 and batch.group.rank == 1 and self.order[-1].startswith("3:"):
            if self.fault is not None:
                raise self.fault
            loss = loss * torch.nan
        return loss, figures


def _fit(folder: Path, fault: Exception | None, parallel: str, rank: int) -> None:
    with dist.joined({}, "cpu") as group:
        run = Folder(folder if group.first else folder.with_name("other"))
        run.folder = folder
        section = Train(steps=12, batch=8, checkpoint_every=4, parallel=parallel)  # type: ignore[arg-type]
        loop.fit(
            Half(rank, fault),
            train=section,
            average=Ema(half_life=64),
            seed=3,
            where=CPU,
            run=run,  # type: ignore[arg-type]
            stop=StopRequest(),
        )


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_nan_in_one_stops_all_and_names_it(parallel: str, tmp_path: Path) -> None:
    members = Team(2, tmp_path / "said", partial(_fit, tmp_path / "run", None, parallel)).wait()
    assert [m.code for m in members] == [1, 1], [m.said for m in members]
    assert "step 3, phase `a`: the loss is not finite on rank 1; the state is kept in" in members[0].said
    assert members[1].said == "" or parallel == "fsdp"
    assert (tmp_path / "run" / "checkpoints" / "failed" / "00000003" / "meta.json").exists()


@pytest.mark.parametrize("fault", [RunFailed("the disk burns", hint="water"), MissingAsset("no file")])
def test_a_fault_of_one_ends_all_with_its_words_and_code(fault: RunFailed | MissingAsset, tmp_path: Path) -> None:
    members = Team(2, tmp_path / "said", partial(_fit, tmp_path / "run", fault, "ddp")).wait()
    assert [m.code for m in members] == [fault.code] * 2
    assert f"rank 1: {fault}" in members[0].said


def test_other_recipes_are_named(recipe: Path, tmp_path: Path) -> None:
    def act(rank: int) -> None:
        command("train", recipe, tmp_path / "run", ("train.batch=16",) if rank == 0 else ("train.batch=8",))

    members = Team(2, tmp_path / "said", act).wait()
    assert [m.code for m in members] == [2, 2]
    assert "the processes disagree: recipe: train.batch: 16 on rank 0, 8 on rank 1" in members[0].said
    assert "same command, the same recipe" in members[0].said
    assert members[1].said == "", "rank 0 alone speaks"
    assert not (tmp_path / "run").exists()


def test_another_number_of_processes_is_named(recipe: Path, tmp_path: Path) -> None:
    team = Team(2, tmp_path / "said", lambda _: command("train", recipe, tmp_path / "run"), sizes={1: 3})
    members = team.wait()
    assert [m.code for m in members] == [2, 2]
    assert "rank 0: started as one of 2 processes, rank 1 as one of 3" in members[0].said


def test_one_that_does_not_come(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENTK_DIST_TIMEOUT", "2")
    team = Team(1, tmp_path / "said", lambda _: command("train", recipe, tmp_path / "run"), sizes={0: 2})
    (member,) = team.wait()
    assert member.code == 1
    assert "rank 0: not all 2 processes have come within 2 s" in member.said


def test_a_batch_that_cannot_be_divided(recipe: Path, tmp_path: Path) -> None:
    sets = ("train.batch=15",)
    members = Team(2, tmp_path / "said", lambda _: command("train", recipe, tmp_path / "run", sets)).wait()
    assert [m.code for m in members] == [2, 2]
    assert "train.batch: 15 images at a time cannot be divided among 2 processes" in members[0].said


def test_a_folder_in_use_is_said_once(recipe: Path, tmp_path: Path) -> None:
    """What rank 0 finds wrong with the folder ends all."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("the user's")
    members = Team(2, tmp_path / "said", lambda _: command("train", recipe, tmp_path / "run")).wait()
    assert [m.code for m in members] == [2, 2]
    assert "exists and is not a run folder" in members[0].said
    assert members[1].said == ""


def test_half_an_environment_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert world.size() == 1, "some clusters set it in every job"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RecipeError, match="MASTER_ADDR"):
        world.size()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(RecipeError, match="WORLD_SIZE=two is not a number"):
        world.size()


def test_under_torchrun_as_a_user_gives_it(tmp_path: Path) -> None:
    """stdout is rank 0's answer, one JSON object; a wrong command is said once."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["sample", "heun", "-n", "4", "--nfe", "3", "--set", "batch=2", "--out", "run", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*torchrun, "-m", "gentk", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["metrics"]["n"]) == ("done", 4)
    assert info(tmp_path / "run")["world_size"] == 2


def test_a_port_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `torchrun --master-port 0` hands on; without this the processes would wait for the whole time limit."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="MASTER_PORT is 0"), dist.joined({}, "cpu"):
        pass
