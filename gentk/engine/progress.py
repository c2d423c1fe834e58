"""How far a run is, on stderr: a bar on a terminal, a plain line every half minute elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from gentk.engine.log import duration, tidy

EVERY = 30.0
"""Seconds between two plain lines."""

_WINDOW = 60.0
"""Seconds over which the speed is averaged: long enough to be calm, short enough to follow a change."""


class Progress:
    """Shows the steps of one run from `start` to `steps`; a context manager, `update` once per step.

    `images` is the number of images per step, `label` what the run is called. `values` of `update` are those of the
    log: phase losses (`loss`, `PHASE/loss`) and `memory_mb` are shown, the newest of each. `clock` gives seconds and
    only ever increases. A display that can no longer be written (its reader has gone) never stops the run.
    """

    def __init__(
        self,
        steps: int,
        images: int,
        *,
        label: str = "",
        start: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps, self._images, self._start, self._step = steps, images, start, start
        self._label, self._clock = label, clock
        self._stream = stream or sys.stderr
        self._shown: dict[str, float] = {}
        self._began = self._printed = clock()
        self._marks: deque[tuple[float, int]] = deque([(self._began, start)])
        self._quiet = quiet
        self._bar = _Bar(self._stream, label, steps, start) if self._stream.isatty() and not quiet else None

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """`step` steps are done; `values` are the newest figures, if there are any."""
        now, self._step = self._clock(), step
        if values:
            self._shown |= {name: value for name, value in values.items() if _is_shown(name)}
        if now - self._marks[-1][0] >= 0.5 or len(self._marks) == 1:
            self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[1][0] >= _WINDOW:
            self._marks.popleft()
        if self._bar:
            self._bar.show(step, self._speed(now), self._figures())
        elif now - self._printed >= EVERY:
            self._printed = now
            self._say(f"{self._place()}  {self._speed(now)}  {self._figures()}")

    def __enter__(self) -> Self:
        """Show the start, or the bar."""
        if self._bar:
            self._bar.start()
        else:
            self._say(f"{self._place()}  started" if not self._start else f"{self._place()}  resumed")
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        """Show where the run ended, whichever way."""
        if self._bar:
            self._bar.stop()
        else:
            self._say(f"{self._place()}  {duration(self._clock() - self._began)}  {self._figures()}")

    def _place(self) -> str:
        share = f"{100 * self._step // self._steps}%"
        return f"{self._label + '  ' if self._label else ''}step {self._step}/{self._steps}  {share}"

    def _speed(self, now: float) -> str:
        then, step = self._marks[0]
        if self._step == step or now <= then:
            return ""
        rate = (self._step - step) / (now - then)
        left = duration((self._steps - self._step) / rate)
        return f"{tidy(rate)} steps/s  {tidy(rate * self._images)} images/s  {left} left"

    def _figures(self) -> str:
        losses = [f"{name} {tidy(value)}" for name, value in self._shown.items() if name != "memory_mb"]
        memory = [f"{self._shown['memory_mb']:.0f} MB"] if "memory_mb" in self._shown else []
        return "  ".join(memory + losses)

    def _say(self, line: str) -> None:
        if self._quiet:
            return
        try:
            print(line.rstrip(), file=self._stream, flush=True)
        except OSError:
            self._quiet = True  # nobody reads on; the run matters more than its display


class _Bar:
    """Two lines that are redrawn in place: the bar with the speed, and the figures under it."""

    def __init__(self, stream: TextIO, label: str, steps: int, start: int) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.table import Column
        from rich.text import Text

        def words(text: str) -> TextColumn:
            return TextColumn(text, markup=False, table_column=Column(no_wrap=True))

        console = Console(file=stream)
        self._text: type[Any] = Text
        columns = words("{task.description}"), BarColumn(), MofNCompleteColumn(), words("{task.fields[speed]}")
        self._bars = Bars(*columns, console=console)
        self._task = self._bars.add_task(label, total=steps, completed=start, speed="")
        # stdout is left alone: it carries the answer and may be a pipe.
        self._live = Live(self._bars, console=console, refresh_per_second=4, redirect_stdout=False)

    def start(self) -> None:
        self._live.start()

    def show(self, step: int, speed: str, figures: str) -> None:
        from rich.console import Group

        self._bars.update(self._task, completed=step, speed=speed)
        line = self._text(figures, style="dim", no_wrap=True, overflow="ellipsis")
        self._live.update(Group(self._bars, line) if figures else self._bars)

    def stop(self) -> None:
        self._live.stop()


def _is_shown(name: str) -> bool:
    return name in ("loss", "memory_mb") or name.endswith("/loss")
