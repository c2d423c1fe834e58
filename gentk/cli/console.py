"""What the commands say and where: answers go to stdout, everything for eyes to stderr.

stdout stays plain so that it can be piped; colour marks only the words `error:` and `hint:` and a table's head, on a
terminal, and never carries meaning.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import typer

from gentk.engine import world
from gentk.engine.log import json_text, tidy
from gentk.errors import GentkError

_quiet = False


def quiet(on: bool) -> None:
    """Silence `note` (and what asks `is_quiet`) from here on. Errors and answers are never silenced."""
    global _quiet
    _quiet = on


def is_quiet() -> bool:
    """Whether the user asked for `--quiet`."""
    return _quiet


def out(text: str) -> None:
    """The answer: one text to stdout, without markup."""
    _write(sys.stdout, text)


def note(text: str) -> None:
    """A remark for eyes, to stderr; silent under `--quiet`."""
    if not _quiet:
        _write(sys.stderr, text)


def as_json(answer: Any) -> None:
    """The answer as one JSON object or array on stdout; NaN and infinities become null."""
    _write(sys.stdout, json_text(answer, indent=2))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """An aligned table on stdout: a head and one line per row, columns two spaces apart, numbers to the right.

    Only a terminal bounds the width: there the text of the last column goes on below itself. A pipe or a file gets one
    line per row however long, so that `grep` and `cut` can be trusted.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    widths = [max(_width(text) for text in column) for column in zip(columns, *cells, strict=True)]
    head = _line(columns, widths, right)
    _write(sys.stdout, typer.style(head, bold=True) if _colour(sys.stdout) else head)
    room = _room(widths)
    for row in cells:
        last = _fold(row[-1], room) if room and not right[-1] else [row[-1]]
        _write(sys.stdout, _line([*row[:-1], last[0]], widths, right))
        for more in last[1:]:
            _write(sys.stdout, " " * (sum(widths[:-1]) + 2 * (len(widths) - 1)) + more)


@contextmanager
def guard() -> Iterator[None]:
    """Around every command: a fault that the user can act on ends it with a message and the fault's exit code.

    Usable as a decorator too. Ctrl-C says `stopped` and exits 1. Anything else is a bug and keeps its traceback.
    """
    try:
        yield
    except GentkError as error:
        # by another process of the same run; or, before they have met, by the first on this machine
        if error.told or (world.local_rank() and not error.shared):
            raise typer.Exit(error.code) from None
        place = "" if error.shared or not world.rank() else f"rank {world.rank()}: "
        _lines("error", place + str(error), typer.colors.RED)
        if error.hint:
            _lines("hint", error.hint, typer.colors.CYAN)
        raise typer.Exit(error.code) from None
    except KeyboardInterrupt:
        _write(sys.stderr, "stopped")
        raise typer.Exit(1) from None


def _lines(label: str, text: str, colour: str) -> None:
    mark = typer.style(f"{label}:", fg=colour, bold=True) if _colour(sys.stderr) else f"{label}:"
    for line in text.splitlines():
        _write(sys.stderr, f"{mark} {line}")


def _write(stream: TextIO, text: str) -> None:
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        # The reader has gone (`| head`). Only our own pipes end a command quietly: a broken pipe from elsewhere, say a
        # data loader that died, is a fault to be seen. The interpreter flushes once more at exit: into the null device.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        raise typer.Exit(1) from None


def _colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Any) -> str:
    text = tidy(value) if _is_number(value) or isinstance(value, bool) else str(value)
    return " ".join(text.split())  # a line break inside a cell would break the table


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # wide characters take two places

    return cell_len(text)


def _line(texts: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = []
    for text, width, to_right in zip(texts, widths, right, strict=True):
        blank = " " * (width - _width(text))
        padded.append(blank + text if to_right else text + blank)
    return "  ".join(padded).rstrip()


def _room(widths: Sequence[int]) -> int:
    """Places left for the last column on this terminal; 0 where nothing bounds it or too few are left to fold into."""
    if not sys.stdout.isatty():
        return 0
    import shutil

    room = shutil.get_terminal_size().columns - sum(widths[:-1]) - 2 * (len(widths) - 1)
    return room if room >= 20 else 0


def _fold(text: str, room: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
