"""What `gentk slurm script` prints, run by a real Slurm: stopped, queued again, finished, equal to the direct run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import DENOISER
from tests.slurm import cluster as slurm
from tests.slurm.cluster import Cluster, until

ROOT = Path(__file__).parents[2]
RECIPE = DENOISER.replace("steps: 12", "steps: 1200").replace("checkpoint_every: 4", "checkpoint_every: 100000")
SEEDS = 3


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if why := slurm.absent():
        pytest.skip(why)
    with slurm.started(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """What jobs inherit: this checkout, one thread, as the script gives them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("COVERAGE_PROCESS_START", raising=False)
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "r.yaml").write_text(RECIPE)
    return folder


def gentk(home: Path, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gentk", *(str(word) for word in words)], cwd=home, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def direct(cluster: Cluster, home: Path) -> Path:
    """The runs that Slurm's must equal, made by one command without it."""
    gentk(home, "train", "--recipe", "r.yaml", "--seeds", f"0-{SEEDS - 1}", "--out", "direct", "--quiet")
    return home / "direct"


def script(home: Path, out: str, *words: object) -> str:
    own = ("--gpus", 0, "--cpus", 1, "--grace", 30, "--time", "30:00", "--out", out)
    return gentk(home, "slurm", "script", "train", "--recipe", "r.yaml", *own, *words)


def info(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "run.json").read_text()))


def under_way(run: Path) -> bool:
    metrics = run / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def finished(cluster: Cluster, job: str, run: Path, direct: Path, restarts: int) -> str:
    """Waits for the end of a job; checks it against the direct run and returns its log."""
    until(lambda: cluster.state(job) not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"))
    facts = cluster.job(job)
    log = "".join(path.read_text() for path in sorted(run.glob("slurm-*.out")))
    assert facts["JobState"] == "COMPLETED", log
    assert facts["Restarts"] == str(restarts)
    assert info(run)["status"] == "done"
    one, other = (load_file(folder / "export" / "denoiser.safetensors") for folder in (run, direct))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    return log


def test_told_to_stop_it_queues_itself_again_and_finishes(cluster: Cluster, home: Path, direct: Path) -> None:
    """USR1 to the job's steps is what Slurm sends when the time is nearly up."""
    run = home / "stopped"
    job = cluster.submit(script(home, "stopped", "--seed", 0), cwd=home)
    until(lambda: under_way(run))
    cluster("scancel", "--signal=USR1", job)
    until(lambda: cluster.job(job)["Restarts"] == "1")
    step = info(run)["step"]
    assert isinstance(step, int)
    assert 0 < step < 1200
    log = finished(cluster, job, run, direct / "seed=0", restarts=1)
    assert "stopped by SIGUSR1" in log
    assert "is queued again" in log


def test_preempted_it_keeps_its_steps_and_finishes(cluster: Cluster, home: Path, direct: Path) -> None:
    run = home / "preempted"
    job = cluster.submit(script(home, "preempted", "--seed", 1), cwd=home)
    until(lambda: under_way(run))
    urgent = cluster.submit("#!/bin/sh\nsleep 2\n", "-p", "high", "-n", "4", "-o", "/dev/null", cwd=home)
    until(lambda: info(run)["status"] == "stopped")
    log = (run / f"slurm-{job}.out").read_text()
    until(lambda: cluster.state(urgent) == "COMPLETED")
    finished(cluster, job, run, direct / "seed=1", restarts=1)
    assert "stopped by SIGTERM" in log
    assert "is queued again" not in log, "Slurm queues a preempted job itself"


def test_cancelled_it_stays_away(cluster: Cluster, home: Path) -> None:
    run = home / "cancelled"
    job = cluster.submit(script(home, "cancelled"), cwd=home)
    until(lambda: under_way(run))
    cluster("scancel", job)
    until(lambda: cluster.state(job) == "CANCELLED")
    until(lambda: info(run)["status"] == "stopped")
    time.sleep(3)
    assert cluster.job(job)["Restarts"] == "0"
    assert cluster.state(job) == "CANCELLED"


def test_an_array_of_three_seeds(cluster: Cluster, home: Path, direct: Path) -> None:
    job = cluster.submit(script(home, "array", "--seeds", f"0-{SEEDS - 1}"), cwd=home)
    for seed in range(SEEDS):
        finished(cluster, f"{job}_{seed}", home / "array" / f"seed={seed}", direct / f"seed={seed}", restarts=0)
    assert len(list((home / "array").glob("slurm-*_*.out"))) == SEEDS


def test_two_processes_by_torchrun_are_stopped_together_and_go_on(cluster: Cluster, home: Path) -> None:
    """torchrun ignores USR1, both processes hear it, and its exit code 1 is understood; the same without Slurm."""
    sets = ("--set", "train.steps=600")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "gentk", "train"]
    done = subprocess.run(
        [sys.executable, *words, "--recipe", "r.yaml", *sets, "--out", "two", "--quiet"],
        cwd=home, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = home / "torchrun"
    job = cluster.submit(script(home, "torchrun", "--processes", 2, *sets), cwd=home)
    until(lambda: under_way(run))
    cluster("scancel", "--signal=USR1", job)
    until(lambda: cluster.job(job)["Restarts"] == "1")
    log = finished(cluster, job, run, home / "two", restarts=1)
    assert log.count("is queued again") == 1
    assert info(run)["world_size"] == 2


def test_a_run_that_fails_is_not_tried_again(cluster: Cluster, home: Path) -> None:
    text = script(home, "failed", "--set", "optim.lr=1e30")
    job = cluster.submit(text, cwd=home)
    until(lambda: cluster.state(job) not in ("PENDING", "RUNNING", "COMPLETING"))
    facts = cluster.job(job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "1:0", "0")
    assert os.path.getsize(home / "failed" / f"slurm-{job}.out") > 0
