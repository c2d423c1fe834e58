"""`gentk runs`: many folders at a glance, one in full, several side by side; damage is named and never fatal."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gentk.cli import runs
from gentk.engine.log import Log

RECIPE = """\
task: distill
expect: {{fd: {{paper: 2.06, where: abstract, ours: 1.3}}}}
train: {{steps: 100, batch: {batch}}}
optim: {{lr: {lr}, betas: [0.0, 0.999]}}
"""


def run(name, *, batch=128, lr="1e-4", extra="", **facts):
    """A run folder `runs/NAME` in the working directory."""
    folder = Path("runs") / name
    Log(folder).close()
    info = {
        "status": "done",
        "task": "distill",
        "method": "sim",
        "recipe": "distill/sim/edm-digits",
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 61.0,
        "step": 100,
        "steps": 100,
        "metrics": {"nfe": 1.0, "fd": 1.25},
    }
    (folder / "run.json").write_text(json.dumps(info | facts))
    (folder / "recipe.yaml").write_text(RECIPE.format(batch=batch, lr=lr) + extra)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(*words, code=0):
    result = CliRunner().invoke(runs.app, words)
    assert result.exit_code == code, result.output
    return result


def test_no_runs_yet():
    result = call("list")
    assert (result.stdout, result.stderr) == ("", "no runs below runs/\n")
    assert json.loads(call("list", "--json").stdout) == []


def test_a_folder_that_is_asked_for_must_exist():
    assert call("list", "elsewhere", code=3).stderr == "error: elsewhere: no such folder\n"


def test_list_is_oldest_first_with_expected_figures_in_front():
    run("b", started="2026-01-01T00:00:00+00:00", status="failed", step=40)
    run("deep/er/a")
    head, first, second = call("list").stdout.splitlines()
    assert head.split() == ["run", "task", "method", "status", "steps", "started", "figures"]
    assert first.split()[:5] == ["runs/b", "distill", "sim", "failed", "40/100"]
    assert second.startswith("runs/deep/er/a  distill  sim     done    100/100  2026-01-0")
    assert second.endswith("fd 1.25, nfe 1")
    answer = json.loads(call("list", "runs/deep", "--json").stdout)
    assert [each["run"] for each in answer] == ["runs/deep/er/a"]
    assert answer[0]["metrics"] == {"fd": 1.25, "nfe": 1.0}
    assert answer[0]["seconds"] == 61.0


@pytest.mark.parametrize("text", ["{", "[]", "", '{"status": "done", "started": 5, "metrics": "?"}'])
def test_a_damaged_run_hides_no_other(text):
    run("good")
    (run("bad") / "run.json").write_text(text)
    result = call("list")
    assert "runs/good" in result.stdout
    assert "runs/bad" in result.stdout
    if "status" not in text:
        assert "warning: runs/bad/run.json: damaged" in result.stderr
        (bad,) = (each for each in json.loads(call("list", "--json").stdout) if each["run"] == "runs/bad")
        assert bad["status"] == "damaged"


def test_running_without_a_process_is_interrupted():
    folder = run("a", status="running")
    with (folder / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert json.loads(call("list", "--json").stdout)[0]["status"] == "running"
    assert json.loads(call("list", "--json").stdout)[0]["status"] == "interrupted"
    assert "status   interrupted" in call("show", "a").stdout


def test_show_by_path_or_name():
    run("a")
    text = call("show", "runs/a").stdout
    assert call("show", "a").stdout == text
    lines = text.splitlines()
    assert "recipe   distill sim distill/sim/edm-digits" in lines
    assert "time     1 min 01 s" in lines
    assert [line.split() for line in lines if line.startswith(("figure", "fd", "nfe"))] == [
        ["figure", "this", "run", "recipe", "paper", "source"],
        ["fd", "1.25", "1.3", "2.06", "abstract"],
        ["nfe", "1", "-", "-"],
    ]
    assert lines[-3:] == ["runs/a/recipe.yaml", "runs/a/metrics.jsonl", "runs/a/log.txt"]


def test_show_as_json():
    run("a", error="full <disk>", status="failed")
    answer = json.loads(call("show", "a", "--json").stdout)
    assert answer["status"] == "failed"
    assert answer["error"] == "full <disk>"
    assert answer["expect"]["fd"]["paper"] == 2.06


def test_an_unknown_run_gets_a_suggestion():
    run("digits")
    result = call("show", "digit", code=3)
    assert result.stderr.splitlines() == [
        "error: digit: not a run folder: it holds no run.json; did you mean `digits`?",
        "hint: gentk runs list shows the runs",
    ]


def test_report_is_made_and_its_path_printed(tmp_path):
    run("a")
    assert call("report", "a").stdout == "runs/a/report.html\n"
    assert "1.25" in (tmp_path / "runs/a/report.html").read_text()
    assert "runs/a/report.html" in call("show", "a").stdout


def test_compare_puts_figures_side_by_side_and_names_what_differs():
    run("a")
    run("b", lr="2e-4", extra="seed: 3\n", metrics={"fd": 1.5})
    run("c", status="failed", metrics={})
    figures, changes = call("compare", "a", "b", "c").stdout.split("\n\n")
    assert [line.split() for line in figures.splitlines()] == [
        ["figure", "a", "b", "c"],
        ["status", "done", "done", "failed"],
        ["steps", "100/100", "100/100", "100/100"],
        ["seconds", "61", "61", "61"],
        ["nfe", "1", "-", "-"],
        ["fd", "1.25", "1.5", "-"],
    ]
    assert [line.split() for line in changes.splitlines()] == [
        ["recipe", "a", "b", "c"],
        ["optim.lr", "0.0001", "0.0002", "0.0001"],
        ["seed", "-", "3", "-"],
    ]
    answer = json.loads(call("compare", "a", "b", "--json").stdout)
    assert answer["metrics"] == {"nfe": [1.0, None], "fd": [1.25, 1.5]}
    assert answer["recipe"] == {"optim.lr": [[1e-4], [2e-4]], "seed": [None, [3]]}
    assert [each["run"] for each in answer["runs"]] == ["runs/a", "runs/b"]


def test_compare_equal_recipes_and_equal_names():
    run("x/a")
    run("y/a")
    text = call("compare", "runs/x/a", "runs/y/a").stdout
    assert text.splitlines()[0].split() == ["figure", "runs/x/a", "runs/y/a"]
    assert text.endswith("the recipes are equal\n")


def test_compare_needs_two():
    run("a")
    assert call("compare", "a", code=2).stderr == "error: one run cannot be compared; name two or more\n"


def test_listing_imports_no_torch():
    run("a")
    code = (
        "import sys\nfrom gentk.cli.runs import app\n"
        "try:\n    app(['list'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert "runs/a" in told.stdout


def test_a_folder_of_runs_gives_means_with_intervals_and_a_page(tmp_path):
    """Two settings times four seeds: t(0.975, 3) s / 2 of 1, 2, 3, 4 is 3.18245 * sqrt(5 / 3) / 2 = 2.054."""
    for lr in ("1e-4", "1e-3"):
        for seed in range(4):
            run(f"s/lr={lr},seed={seed}", lr=lr, extra=f"seed: {seed}\n", metrics={"fd": 1.0 + seed, "nfe": 1.0})
    said = call("compare", "s")
    assert said.stdout.splitlines()[0].split() == ["setting", "done", "fd", "nfe"]
    assert "4/4" in said.stdout
    assert "2.5 ± 2.1" in said.stdout
    assert said.stderr.splitlines()[-1] == "page: runs/s/compare.html"
    answer = json.loads(call("compare", "runs/s", "--page", "p.html", "--json").stdout)
    assert answer["page"] == "p.html"
    first = answer["settings"][0]
    assert first["setting"] == "optim.lr=0.001"
    assert first["metrics"]["fd"]["mean"] == 2.5
    assert first["metrics"]["fd"]["half_width"] == pytest.approx(3.18245 * (5 / 3) ** 0.5 / 2, rel=1e-5)
    assert len(answer["runs"]) == 8
    assert "cannot be written" in call("compare", "s", "--page", "none/p.html", code=2).stderr
