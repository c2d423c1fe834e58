"""What README.md says can be done can be done: its commands run, its paths and recipes exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gentk.cli.app import app
from gentk.recipe import registry, store

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
EXAMPLE = "mine"  # the reader's own method, in "Add a method"


def blocks(text: str) -> list[str]:
    """The fenced blocks."""
    return re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """The lines of fenced blocks that call gentk, a `$ ` before them or not, once each."""
    lines = (line.removeprefix("$ ") for block in blocks(text) for line in block.splitlines())
    return list(dict.fromkeys(line for line in lines if line.split()[:1] == ["gentk"]))


def tree(text: str) -> list[tuple[str, list[str]]]:
    """Of the block under "The code", line by line: the path that it begins with, and the other paths named in it."""
    block = blocks(text.partition("## The code")[2])[0]
    found, folder = [], ""
    for line in filter(str.strip, block.splitlines()):
        first, _, rest = line.strip().partition(" ")
        if line.startswith(" "):
            first = folder + first
        elif first.endswith("/"):
            folder = first
        found.append((first, re.findall(r"(?<![\w/])[a-z][a-z_]*(?:/|\.py)(?!\w)", rest)))
    return found


def recipes(text: str) -> set[str]:
    """TASK/METHOD/SUBJECT wherever it is written, but for the reader's own."""
    tasks = "|".join(registry.tasks())
    names = re.findall(rf"(?<![\w-])((?:{tasks})/[a-z][a-z-]*/[a-z0-9][a-z0-9-]*)", text)
    return {name for name in names if name.split("/")[1] != EXAMPLE}


def test_the_readers_of_the_readme_read() -> None:
    """The control: what the tests below go through is found, with what must not be."""
    text = (
        "gentk outside\n```sh\n$ gentk runs list  # see\nmake\n  gentk doctor\nsrun gentk doctor\n```\n"
        "`distill/sim/no-such` recipes/distill/mine/edm-digits.yaml gentk/tasks/distill/mine.py\n"
        "## The code\n```\ngentk/\n  nets/   and mlp.py, tests/\nlast.md  TASK/METHOD\n```\n"
    )
    assert commands(text) == ["gentk runs list  # see", "  gentk doctor"]
    assert tree(text) == [("gentk/", []), ("gentk/nets/", ["mlp.py", "tests/"]), ("last.md", [])]
    assert recipes(text) == {"distill/sim/no-such"}


@pytest.mark.parametrize("command", commands(README))
def test_commands_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, where they only look; with --dry-run, which builds everything, where they would work long."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command, comments=True)[1:]
    work = words[0] in registry.tasks() and "--help" not in words
    result = CliRunner().invoke(app, [*words, "--dry-run"] if work and "--dry-run" not in words else words)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert result.stdout.strip() or words[:2] == ["runs", "list"]  # there are no runs here
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


def test_there_are_commands_of_every_task() -> None:
    found = [shlex.split(c, comments=True)[1] for c in commands(README)]
    assert len(found) >= 10
    assert set(registry.tasks()) <= set(found)


def test_the_tree_is_the_tree() -> None:
    """Each line begins with a path in its place; others in it are beside it, below it, in gentk/ or at the root."""
    lines = tree(README)
    assert len(lines) >= 10
    absent = []
    for first, others in lines:
        place = ROOT / first
        if not place.exists():
            absent.append(first)
        around = (place, place.parent, ROOT / "gentk", ROOT)
        absent += [f"{other} (line of {first})" for other in others if not any((a / other).exists() for a in around)]
    assert absent == []


def test_the_tree_is_whole() -> None:
    """Every package and module directly in gentk/ is in it."""
    named = {Path(name).name for first, others in tree(README) for name in (first, *others)}
    own = {p.name for p in (ROOT / "gentk").iterdir() if not p.name.startswith(("_", ".")) and p.name != "recipes"}
    assert own - named == set()


def test_recipes_that_are_named_exist() -> None:
    assert recipes(README) - {entry.name for entry in store.recipes()} == set()


def test_files_that_are_named_exist() -> None:
    """Paths in backticks below the folders of the repository, written from the root or from gentk/."""
    paths = set(re.findall(r"`((?:gentk|engine|tests|recipes|benchmarks|\.ci)/[\w./-]*)`", README))
    paths = {p for p in paths if EXAMPLE not in re.split(r"[/.]", p) and not re.search(r"[A-Z]{3}", p)}
    assert paths
    assert [p for p in sorted(paths) if not (ROOT / p).exists() and not (ROOT / "gentk" / p).exists()] == []
