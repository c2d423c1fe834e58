"""`gentk slurm script`: the file that it prints, and what it refuses to print. Run by a real Slurm in tests/slurm."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gentk.cli import slurm
from gentk.cli.app import app
from tests.conftest import DENOISER

Write = Callable[[str, str], Path]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def gentk(*words: object) -> Result:
    return CliRunner().invoke(app, ["slurm", "script", *(str(word) for word in words)])


def script(*words: object) -> str:
    result = gentk(*words)
    assert result.exit_code == 0, result.output
    checked = subprocess.run(["bash", "-n"], input=result.stdout, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, ""), result.stdout
    return result.stdout


def asked(text: str) -> dict[str, str]:
    """What the #SBATCH lines say; Slurm stops to read them at the first command."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH "):
            key, _, value = line.removeprefix("#SBATCH --").partition("=")
            found[key] = value
        elif not line.startswith("#"):
            break
    return found


def ran(text: str, tmp_path: Path, **environment: str) -> list[str]:
    """The words that the script would run, up to `srun`, on the first of two nodes."""
    shown = text.partition("\nsrun ")[0] + "\nprintf '%s\\n' \"${command[@]}\"\n"
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'node7\\nnode9\\n'\n")
    (tmp_path / "scontrol").chmod(0o755)
    base = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "50123", "SLURM_JOB_NODELIST": "node[7,9]"}
    done = subprocess.run(
        ["bash", "-c", shown], env=base | {"SLURM_JOB_NUM_NODES": "2"} | environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_two_nodes_of_eight_gpus(tmp_path: Path) -> None:
    text = script("distill", "sim", "--nodes", 2, "--gpus", 8, "--time", "24:00:00", "--out", "run")
    said = asked(text)
    assert {"nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "8", "time": "24:00:00"}.items() <= said.items()
    assert {"signal": "USR1@300", "requeue": "", "open-mode": "append"}.items() <= said.items()
    assert said["output"] == "run/slurm-%j.out"
    assert said["cpus-per-task"] == "16"
    assert (tmp_path / "run").is_dir(), "Slurm opens the log before the job begins"
    assert ran(text, tmp_path, SLURM_RESTART_COUNT="3") == [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=8", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=node7:{20000 + 50123 % 40000}", "--rdzv-id=50123.3", "-m", "gentk", "distill", "sim",
        "--out", "run",
    ]  # fmt: skip


def test_one_process_needs_no_torchrun(tmp_path: Path) -> None:
    text = script("distill", "sim", "--gpus", 0, "--out", "run")
    assert "torch.distributed" not in text
    assert "gpus-per-node" not in asked(text)
    assert ran(text, tmp_path) == [sys.executable, "-m", "gentk", "distill", "sim", "--out", "run"]


def test_every_word_of_the_command_comes_through(tmp_path: Path) -> None:
    words = ["sample", "heun", "--model", "edm-digits", "-n", "8", "--seeds", "4-9", "--nfe", "9"]
    own = ["--set", "batch=4", "--set", "labels=[1, 2]", "--device", "cpu", "--seed", "3"]
    words.remove("-n"), words.remove("8")
    text = script(*words, *own, "--out", "a run", "--python", "my python")
    found = ran(text, tmp_path)
    assert found[:4] == ["my python", "-m", "gentk", "sample"]
    assert sorted(found[4:]) == sorted([*words[1:], *own, "--out", "a run"])


def test_an_array_of_seeds_and_values(tmp_path: Path) -> None:
    text = script(
        "distill", "sim", "--sweep", "method.weight=const,edm", "--seeds", "0-2", "--at-once", 4, "--out", "s"
    )
    assert asked(text)["array"] == "0-5%4"
    assert asked(text)["output"] == "s/slurm-%A_%a.out"
    assert ran(text, tmp_path, SLURM_ARRAY_TASK_ID="4") == [
        sys.executable, "-m", "gentk", "distill", "sim", "--set", "method.weight=edm", "--set", "seed=1",
        "--out", "s/weight=edm,seed=1",
    ]  # fmt: skip


def test_what_sites_want() -> None:
    own = ("--partition", "gpu", "--account", "a b", "--qos", "low", "--mem", "64G", "--job-name", "x", "--cpus", 4)
    text = script("distill", "sim", *own, "--sbatch", "--constraint=a100", "--setup", "module load cuda/12")
    said = asked(text)
    assert said["account"] == '"a b"'
    assert (said["partition"], said["qos"], said["mem"], said["job-name"]) == ("gpu", "low", "64G", "x")
    assert said["constraint"] == "a100"
    assert "\nmodule load cuda/12\n" in text
    assert "export OMP_NUM_THREADS=4\n" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("distill", "sim", "--set", "method.wieght=edm"), "did you mean `weight`?"),
        (("distill", "sim", "--sweep", "method.weight=const,none"), "method.weight"),
        (("distill", "smi"), "did you mean `sim`?"),
        (("distill", "sim", "--fresh"), "start again each time"),
        (("distill", "sim", "--dry-run"), "--dry-run"),
        (("distill", "sim", "--time", "tomorrow"), "not a time"),
        (("distill", "sim", "--time", "0:05:00"), "for stopping"),
        (("distill", "sim", "--nodes", 3, "--gpus", 5), "cannot be split over 15 processes"),
        (("distill", "sim", "--partition", "a\nb"), "#SBATCH"),
    ],
)
def test_what_is_refused_at_once(words: tuple[object, ...], said: str, tmp_path: Path) -> None:
    result = gentk(*words)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert said in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("2-0", 172800), ("1-1:30", 91800), ("1-0:0:5", 86405)],
)
def test_slurms_times(text: str, seconds: int) -> None:
    assert slurm._seconds(text) == seconds


def test_words_for_the_shell_are_quoted(write: Write, tmp_path: Path) -> None:
    recipe = write("my $recipe's.yaml", DENOISER)
    text = script("train", "--recipe", recipe, "--set", "about=$(touch hacked); `touch hacked`", "--out", "r")
    assert ran(text, tmp_path)[-4:] == ["--set", "about=$(touch hacked); `touch hacked`", "--out", "r"]
    assert shlex.quote(str(recipe)) in text
    assert not (tmp_path / "hacked").exists()


def test_no_torch_is_imported() -> None:
    code = (
        "import sys\nsys.argv = ['gentk', 'slurm', 'script', 'distill', 'sim', '--seeds', '0-2']\n"
        "from gentk.cli.app import app\ntry:\n    app()\nexcept SystemExit as e:\n    assert not e.code\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr


def test_the_commands_of_the_page_print_scripts() -> None:
    """Those of docs/slurm.md; with a teacher that ships, for the page's own must be imported first."""
    page = (Path(__file__).parents[2] / "docs" / "slurm.md").read_text("utf-8")
    lines = [line for line in page.splitlines() if line.startswith("gentk slurm script ")]
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line.partition("|")[0].partition(">")[0].replace("edm-cifar10", "edm-digits"))
        script(*words[3:])
