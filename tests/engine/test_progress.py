"""Progress: a line every half minute, a bar only on a terminal, silence on request, and honest speeds."""

import contextlib
import io
import re

import pytest

from gentk.engine.progress import EVERY, Progress


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(stream, *, steps=100, seconds=1.0, start=0, until=None, quiet=False, values=None, label=""):
    """A run of `steps` steps that take `seconds` each."""
    clock = Clock()
    with Progress(steps, 64, start=start, quiet=quiet, stream=stream, clock=clock, label=label) as progress:
        for step in range(start + 1, (until or steps) + 1):
            clock.now += seconds
            progress.update(step, values)
    return stream.getvalue()


def test_a_line_at_the_start_every_half_minute_and_at_the_end():
    lines = run(io.StringIO()).splitlines()
    assert [re.match(r"step (\d+)/100", line)[1] for line in lines] == ["0", "30", "60", "90", "100"]
    assert lines[0] == "step 0/100  0%  started"
    assert lines[1] == "step 30/100  30%  1 steps/s  64 images/s  1 min 10 s left"
    assert lines[-1] == "step 100/100  100%  1 min 40 s"


def test_fast_steps_do_not_add_lines():
    assert len(run(io.StringIO(), steps=29_000, seconds=0.001).splitlines()) == 2
    assert len(run(io.StringIO(), steps=31_000, seconds=0.001).splitlines()) == 3


def test_slow_steps_are_told_one_by_one_at_the_right_speed():
    lines = run(io.StringIO(), steps=3, seconds=4 * EVERY).splitlines()
    assert lines[1] == "step 1/3  33%  0.008333 steps/s  0.5333 images/s  4 min 00 s left"
    assert len(lines) == 5


def test_speed_follows_a_change_within_a_minute():
    clock, stream = Clock(), io.StringIO()
    with Progress(1000, 1, stream=stream, clock=clock) as progress:
        for step in range(1, 601):
            clock.now += 1.0 if step <= 400 else 0.5
            progress.update(step)
    lines = stream.getvalue().splitlines()
    assert "  1 steps/s" in lines[12]
    assert "  2 steps/s" in lines[-2]


def test_a_resumed_run_counts_its_own_steps_only():
    lines = run(io.StringIO(), start=40).splitlines()
    assert lines[0] == "step 40/100  40%  resumed"
    assert lines[1].startswith("step 70/100  70%  1 steps/s")  # 70 / 30 if the first 40 were counted


def test_losses_and_memory_are_shown_and_kept_until_newer_ones_come():
    clock, stream = Clock(), io.StringIO()
    with Progress(60, 64, stream=stream, clock=clock) as progress:
        progress.update(1, {"generator/loss": 0.25, "fake/loss": 2.0, "memory_mb": 411.6, "generator/grad_norm": 7.0})
        progress.update(2, {"fake/loss": 3.0})
        clock.now += EVERY
        progress.update(3)
    line = stream.getvalue().splitlines()[1]
    assert line.endswith("412 MB  generator/loss 0.25  fake/loss 3")
    assert "grad_norm" not in line


def test_the_last_line_says_where_a_run_broke_off():
    assert run(io.StringIO(), until=50).splitlines()[-1] == "step 50/100  50%  50 s"
    stream = io.StringIO()
    progress = Progress(10, 1, stream=stream, clock=Clock(), label="sim")
    with contextlib.suppress(ZeroDivisionError), progress:
        progress.update(4)
        raise ZeroDivisionError
    assert stream.getvalue().splitlines()[-1].startswith("sim  step 4/10  40%")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_is_silent(stream):
    assert run(stream(), quiet=True) == ""


def test_a_display_that_cannot_be_written_does_not_stop_the_run():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    assert run(Gone()) == ""


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    text = run(Terminal(), label="distill sim", values={"fake/loss": 0.5})
    assert "distill sim" in text
    assert "100/100" in text
    assert "1 steps/s" in text
    assert "fake/loss 0.5" in text
    assert "started" not in text
    assert text.endswith("\x1b[?25h")  # the cursor is given back
