"""Imports point down the floors, tasks know nothing of each other, and what must be light is."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gentk"
FLOORS = (
    ("errors",),
    ("recipe",),
    ("nets",),
    ("processes",),
    ("losses", "solvers"),
    ("attacks",),
    ("targets", "operators"),
    ("attacks", "defences", "restoring"),
    ("data",),
    ("metrics",),
    ("engine",),
    ("tasks",),
    ("cli",),
)
HEIGHT = {name: i for i, floor in enumerate(FLOORS) for name in floor}


def floor(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in HEIGHT else None


def imports(path: Path) -> Iterator[str]:
    """Modules of gentk that a file imports, anywhere in it, `if TYPE_CHECKING` apart (never run)."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 50
    return found


def test_imports_point_down() -> None:
    wrong = []
    for path in files():
        here = floor("gentk." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
        for module in imports(path):
            there = floor(module) if module.startswith("gentk.") else None
            if here and there and HEIGHT[there] > HEIGHT[here]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_tasks_do_not_import_each_other() -> None:
    for path in sorted((PACKAGE / "tasks").glob("*/*.py")):
        own = f"gentk.tasks.{path.parent.name}"
        others = [m for m in imports(path) if m.startswith("gentk.tasks") and not m.startswith(own)]
        assert others == [], path


def test_attacks_and_defences_meet_at_the_victim_only() -> None:
    for own, other in (("attacks", "defences"), ("defences", "attacks")):
        found = [m for path in sorted((PACKAGE / own).glob("*.py")) for m in imports(path) if f"gentk.{other}" in m]
        assert all(m.startswith("gentk.attacks.victim") for m in found), found
    assert found, "defences know the victim's interface"


def test_no_drawer_modules_and_no_long_files() -> None:
    for path in files():
        assert path.stem not in {"utils", "helpers", "common", "misc", "util"}, path
        assert len(path.read_text().splitlines()) <= 400, path


def run(code: str, *paths: Path) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths or (ROOT,)))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("task", ["train", "train-ebm", "distill", "align", "sample", "purify", "restore", "evaluate"])
def test_deleting_a_task_breaks_no_other(task: str, tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "gentk", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    shutil.rmtree(tmp_path / "gentk" / "tasks" / task.replace("-", "_"))
    shutil.rmtree(tmp_path / "recipes" / task)
    rest = run(
        "from gentk.recipe import registry\n"
        "for t in registry.tasks():\n"
        "    for m in registry.methods(t):\n"
        "        registry.recipe_schema(t, m)\n"
        "from typer.testing import CliRunner\n"
        "from gentk.cli.app import app\n"
        "assert CliRunner().invoke(app, ['recipes', 'check', '--all']).exit_code == 0\n"
        "print(*registry.tasks())\n",
        tmp_path,
    )
    tasks = {"train", "train-ebm", "distill", "align", "sample", "purify", "restore", "evaluate"}
    assert set(rest.split()) == tasks - {task}


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("distill", "--help"),
        ("recipes", "list"),
        ("recipes", "show", "sim"),
        ("recipes", "show", "sim", "--full"),
        ("recipes", "check", "--all"),
        ("runs", "list"),
        ("models", "list"),
    ],
)
def test_light_commands_import_no_torch(words: tuple[str, ...]) -> None:
    code = (
        f"import sys\nsys.argv = ['gentk', *{words!r}]\nfrom gentk.cli.app import app\n"
        "try:\n    app()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
    )
    run(code + "heavy = {'torch', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)\nassert not heavy, heavy\n")


@pytest.mark.parametrize("words", [("--help",), ("recipes", "list"), ("recipes", "show", "sim"), ("runs", "list")])
def test_light_commands_take_under_half_a_second_of_cpu(words: tuple[str, ...], tmp_path: Path) -> None:
    """CPU time of the child, the best of three, on a machine where importing the libraries below takes 0.15 s.

    A slower or busier one gets as much more: the promise is about what gentk does, not about the machine.
    """
    unit = min(_cpu("-c", "import typer.main, yaml, rich.console") for _ in range(3)) / 0.15
    best = min(_cpu("-m", "gentk", *words) for _ in range(3))
    assert best < 0.5 * max(1, unit), f"{best:.2f} s, {unit:.2f} units"


def _cpu(*words: str) -> float:
    before = os.times()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("COVERAGE_PROCESS_START", None)  # measuring coverage of the child would count as its time
    environment.pop("COVERAGE_PROCESS_CONFIG", None)
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_import_gentk_is_light() -> None:
    run("import sys, gentk\nassert not {'torch', 'pydantic', 'typer'} & set(sys.modules)\n")
