"""Errors that a user can act on: each carries an exit code and, where there is one, the remedy.

Anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GentkError(Exception):
    """A fault with a place, a cause and a remedy. `code` is the process's exit code.

    Of several processes of one run: `shared` where the others know of it, `told` where another one says it.
    """

    code = 1
    shared = False
    told = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class RunFailed(GentkError):
    """The run itself failed: a loss that is not finite, a full disk, data with NaN."""


class RecipeError(GentkError):
    """The command or the recipe is wrong; nothing was run."""

    code = 2


class MissingAsset(GentkError):
    """A needed file or package is absent; the hint says how to get it."""

    code = 3


class Stopped(GentkError):
    """Stopped on request: the same command finishes the work, from the last checkpoint where there are any."""

    code = 75


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """`"; did you mean `close`?"` for the nearest of `options`, or the empty string."""
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else ""
