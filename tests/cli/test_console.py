"""What goes to stdout and to stderr, how faults end a command, and that tables survive a pipe."""

import io
import json
import subprocess
import sys
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from gentk.cli import console
from gentk.errors import GentkError, MissingAsset, RecipeError, RunFailed, Stopped


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def talkative():
    yield
    console.quiet(False)


def ending(fault: BaseException):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @console.guard()
    def run() -> None:
        raise fault

    return CliRunner().invoke(app)


def test_answers_on_stdout_remarks_on_stderr(capsys):
    console.out("runs/a")
    console.note("look")
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("runs/a\n", "look\n")


def test_quiet_silences_remarks_only(capsys):
    console.quiet(True)
    assert console.is_quiet()
    console.note("look")
    console.out("[bold]runs/a[/bold]")
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("[bold]runs/a[/bold]\n", "")


def test_json_is_strict(capsys):
    console.as_json({"fd": float("nan"), "runs": [{"lr": float("inf"), "n": 3, "name": "é"}]})
    text = capsys.readouterr().out
    answer = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert answer == {"fd": None, "runs": [{"lr": None, "n": 3, "name": "é"}]}


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (GentkError("m"), 1),
        (RunFailed("m"), 1),
        (RecipeError("m"), 2),
        (MissingAsset("m"), 3),
        (Stopped("m"), 75),
    ],
)
def test_a_fault_ends_with_its_code_and_without_a_hint_when_it_has_none(fault, code):
    result = ending(fault)
    assert (result.exit_code, result.stderr, result.stdout) == (code, "error: m\n", "")


def test_every_line_of_a_fault_is_marked():
    result = ending(RecipeError("a.yaml:1: x: one\na.yaml:2: y: two", hint="gentk recipes show a\nor copy it"))
    assert result.stderr.splitlines() == [
        "error: a.yaml:1: x: one",
        "error: a.yaml:2: y: two",
        "hint: gentk recipes show a",
        "hint: or copy it",
    ]


def test_faults_are_told_under_quiet():
    console.quiet(True)
    assert ending(RunFailed("m")).stderr == "error: m\n"


def test_interrupt():
    result = ending(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (1, "stopped\n")


@pytest.mark.parametrize("bug", [ZeroDivisionError("bug"), BrokenPipeError("a data loader died")])
def test_a_bug_keeps_its_traceback(bug):
    result = ending(bug)
    assert result.exception is bug
    assert "error:" not in result.stderr


def test_guard_keeps_the_signature_for_typer():
    app = typer.Typer()

    @app.command()
    @console.guard()
    def run(count: Annotated[int, typer.Option("-n")] = 1) -> None:
        console.out(str(count + 1))

    assert CliRunner().invoke(app, ["-n", "4"]).stdout == "5\n"
    assert CliRunner().invoke(app, ["-n", "x"]).exit_code == 2


def test_colour_on_a_terminal_only_and_not_against_no_color(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def told() -> str:
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(typer.Exit), console.guard():
            raise RunFailed("m", hint="h")
        return stream.getvalue()

    assert "\x1b[" in told()
    monkeypatch.setenv("NO_COLOR", "1")
    assert told() == "error: m\nhint: h\n"
    monkeypatch.setenv("NO_COLOR", "")  # set but empty counts as not set (no-color.org)
    assert "\x1b[" in told()
    monkeypatch.setenv("TERM", "dumb")
    assert told() == "error: m\nhint: h\n"


def test_table_aligns_numbers_right_and_words_left(capsys):
    console.table(["run", "fd", "n"], [["a", 1.23456, 12], ["longer", None, 1000]])
    assert capsys.readouterr().out == "run        fd     n\na       1.235    12\nlonger      -  1000\n"


def test_table_never_wraps_or_cuts_in_a_pipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = "word " * 60
    console.table(["name", "about"], [["a", text], ["b\nc", "x"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["name  about", f"a     {text.strip()}", "b c   x"]


def test_table_folds_its_last_column_on_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    console.table(["name", "about"], [["a", "word " * 12]])
    head, *lines = stream.getvalue().splitlines()
    assert head == "name  about"
    assert len(lines) == 2
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith("a     word")
    assert lines[1].startswith("      word")
    assert " ".join(lines).split() == ["a"] + ["word"] * 12


def test_table_counts_wide_characters_as_two(capsys):
    console.table(["name", "n"], [["漢字", 1], ["abcd", 2]])
    assert capsys.readouterr().out.splitlines()[1:] == ["漢字  1", "abcd  2"]


def test_empty_table_has_its_head(capsys):
    console.table(["name", "n"], [])
    assert capsys.readouterr().out == "name  n\n"


ENDLESS = """
import typer
from gentk.cli import console

app = typer.Typer()

@app.command()
@console.guard()
def talk() -> None:
    while True:
        console.out("line")

app()
"""


def test_a_reader_that_leaves_ends_the_command_quietly():
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 1


def test_commands_import_no_torch():
    code = "import sys\nfrom gentk.cli import console, doctor, models, runs\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
