"""`gentk recipes`: what goes to stdout and stderr, exit codes, and that listing stays quick."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gentk.cli.recipes import app
from gentk.recipe import store

SIM = """\
# One-step digits.
task: distill
about: one-step digits
size: laptop
default: true
teacher: edm-digits
method: {name: sim}
optim: {generator: {lr: 1e-4}, fake: {lr: 1e-4}}
train:
  steps: 100
"""
GPU = SIM.replace("default: true\n", "").replace("laptop", "gpu").replace("100", "900")
Add = Callable[..., Path]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Add:
    """Adds a recipe to a store of the test's own, and runs the test in an empty folder beside it."""
    root, work = tmp_path / "recipes", tmp_path / "work"
    root.mkdir()
    work.mkdir()
    monkeypatch.setattr(store, "root", lambda: root)
    monkeypatch.chdir(work)

    def write(name: str = "distill/sim/edm-digits", text: str = SIM) -> Path:
        path = root / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    return write


def test_list(add: Add) -> None:
    add()
    add("distill/sim/edm-cifar10", GPU)
    add("train/denoiser/broken", "about: [\n")
    rows = [line.split() for line in run("list").stdout.splitlines()[1:]]
    assert rows[0][:2] == ["distill/sim/edm-cifar10", "gpu"]
    assert rows[1] == ["*", "distill/sim/edm-digits", "laptop", "one-step", "digits"]
    assert rows[2][0] == "train/denoiser/broken"
    assert len(run("list", "train").stdout.splitlines()) == 2


def test_list_json(add: Add) -> None:
    path = add()
    assert json.loads(run("list", "--json").stdout) == [
        {
            "name": "distill/sim/edm-digits",
            "task": "distill",
            "method": "sim",
            "subject": "edm-digits",
            "size": "laptop",
            "about": "one-step digits",
            "default": True,
            "path": str(path),
        }
    ]


def test_list_of_nothing(add: Add) -> None:
    result = run("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no recipes" in result.stderr
    assert json.loads(run("list", "--json").stdout) == []


def test_list_of_an_unknown_task(add: Add) -> None:
    add()
    result = run("list", "distil")
    assert result.exit_code == 2
    assert "error: no recipes for the task `distil`; did you mean `distill`?" in result.stderr


def test_show(add: Add) -> None:
    add()
    assert run("show", "sim").stdout == SIM


def test_show_full(add: Add) -> None:
    add()
    lines = run("show", "distill/sim/edm-digits", "--full").stdout.splitlines()
    assert any(line.startswith("  steps: 100 ") and "edm-digits.yaml:10; optimiser steps" in line for line in lines)
    assert any(line.startswith("  sigma_init: 2.5 ") and "# default; " in line for line in lines)


def test_show_json(add: Add) -> None:
    add()
    answer = json.loads(run("show", "sim", "--json").stdout)
    assert answer["recipe"] == "distill/sim/edm-digits"
    keys = {row["key"]: row for row in answer["keys"]}
    assert (keys["train.steps"]["value"], keys["train.steps"]["origin"]) == (100, "edm-digits.yaml:10")
    assert keys["optim.fake.betas"] == {
        "key": "optim.fake.betas",
        "value": [0.9, 0.999],
        "origin": "default",
        "about": "decay of the first and second moments",
    }


def test_show_unknown(add: Add) -> None:
    add()
    result = run("show", "smi")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error: no recipe `smi`; did you mean `sim`?" in result.stderr
    assert "hint: " in result.stderr


@pytest.mark.parametrize("dest", [(), ("own.yaml",), (".",)])
def test_cp(add: Add, dest: tuple[str, ...]) -> None:
    add()
    result = run("cp", "sim", *dest)
    target = Path("own.yaml" if dest == ("own.yaml",) else "edm-digits.yaml")
    assert result.stdout == f"{target}\n"
    assert target.read_text() == SIM
    assert run("check", target).exit_code == 0


def test_cp_overwrites_only_by_force(add: Add) -> None:
    add()
    Path("own.yaml").write_text("mine")
    result = run("cp", "sim", "own.yaml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "own.yaml: exists already" in result.stderr
    assert Path("own.yaml").read_text() == "mine"
    assert run("cp", "sim", "own.yaml", "--force").exit_code == 0
    assert Path("own.yaml").read_text() == SIM


@pytest.mark.parametrize(
    ("dest", "message"),
    [
        ("no/such/own.yaml", "no such file or directory"),
        ("x" * 300, "file name too long"),
        ("/proc/own.yaml", "/proc/own.yaml: "),
    ],
)
def test_cp_to_where_it_cannot(add: Add, dest: str, message: str) -> None:
    add()
    result = run("cp", "sim", dest)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr


def test_cp_onto_itself_keeps_the_recipe(add: Add) -> None:
    path = add()
    assert run("cp", "sim", path, "--force").exit_code == 2
    assert path.read_text() == SIM


def test_check(add: Add) -> None:
    add()
    Path("own.yaml").write_text(SIM.replace("steps:", "stpes:").replace("size: laptop", "size: big"))
    good = run("check", "sim")
    assert (good.exit_code, good.stdout, good.stderr) == (0, "sim: ok\n", "")
    result = run("check", "own.yaml", "sim", "nothing")
    assert result.exit_code == 2
    assert result.stdout == "sim: ok\n"
    assert [line for line in result.stderr.splitlines() if line.startswith("error: ")] == [
        "error: own.yaml:4: size: must be `smoke`, `laptop`, `gpu` or `cluster`, not `big`",
        "error: own.yaml:9: train.steps: required, but missing",
        "error: own.yaml:10: train.stpes: unknown key; did you mean `steps`?",
        "error: no recipe `nothing`",
    ]


def test_check_json(add: Add) -> None:
    add()
    Path("own.yaml").write_text(SIM + "x: 1\n")
    result = run("check", "own.yaml", "sim", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == [
        {"recipe": "own.yaml", "faults": ["own.yaml:11: x: unknown key"]},
        {"recipe": "sim", "faults": []},
    ]
    assert run("check", "sim", "--json").exit_code == 0


def test_check_wants_recipes_or_all(add: Add) -> None:
    add()
    assert run("check").exit_code == run("check", "sim", "--all").exit_code == 2


def test_check_all_of_a_sound_store(add: Add) -> None:
    add()
    add("distill/sim/edm-cifar10", GPU)
    result = run("check", "--all")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "distill/sim/edm-cifar10: ok\ndistill/sim/edm-digits: ok\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("distill/sid/edm-digits", GPU, "method.name: is `sim`, but the file lies in distill/sid"),
        ("train/sim/edm-digits", GPU, "task: is `distill`, but the file lies in train/sim"),
        ("distill/sim/second", SIM, "distill/sim: 2 recipes say `default: true`; one may"),
        ("distill/stray", GPU, "stray.yaml: a recipe lies at TASK/METHOD/SUBJECT.yaml"),
        ("distill/sim/typo", GPU + "x: 1\n", "typo.yaml:10: x: unknown key"),
        ("distill/sim/broken", "a: [\n", "broken.yaml:2: "),
    ],
)
def test_check_all_of_an_unsound_store(add: Add, name: str, text: str, message: str) -> None:
    add()
    add(name, text)
    result = run("check", "--all")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_check_all_of_an_empty_store(add: Add) -> None:
    assert "no recipe here" in run("check", "--all").stderr
    assert run("check", "--all").exit_code == 2


def test_diff(add: Add) -> None:
    add()
    add("distill/sim/edm-cifar10", GPU)
    lines = [line.split() for line in run("diff", "sim", "edm-cifar10").stdout.splitlines()]
    assert lines[0] == ["key", "distill/sim/edm-digits", "distill/sim/edm-cifar10"]
    assert lines[1:] == [["size", "laptop", "gpu"], ["default", "true", "false"], ["train.steps", "100", "900"]]
    assert json.loads(run("diff", "sim", "edm-cifar10", "--json").stdout)[2] == {
        "key": "train.steps",
        "a": 100,
        "b": 900,
    }


def test_diff_of_keys_that_one_lacks(add: Add) -> None:
    add()
    add("distill/sim/other", GPU + "measure: {features: identity}\n")
    rows = {row["key"]: row for row in json.loads(run("diff", "sim", "other", "--json").stdout)}
    assert rows["measure.features"] == {"key": "measure.features", "b": "identity"}
    assert rows["measure"] == {"key": "measure", "a": None}


def test_diff_of_equals(add: Add) -> None:
    add()
    result = run("diff", "sim", "edm-digits")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no differences" in result.stderr


def test_listing_many_imports_nothing_heavy(tmp_path: Path) -> None:
    """These modules are what would make listing slow; tests/test_layers.py times the commands themselves."""
    for i in range(50):
        path = tmp_path / "distill" / "sim" / f"subject{i}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SIM)
    program = f"""
import sys, pathlib
from gentk.recipe import store
store.root = lambda: pathlib.Path({str(tmp_path)!r})
from gentk.cli.recipes import app
app(["list"], standalone_mode=False)
heavy = {{"torch", "numpy", "matplotlib", "gentk.tasks", "gentk.recipe.schema"}} & set(sys.modules)
print("heavy:", *sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *listed, heavy = done.stdout.splitlines()
    assert (len(listed), heavy) == (51, "heavy:")
