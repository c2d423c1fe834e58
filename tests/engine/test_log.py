"""The log survives kills, resumes without doubling lines, and stays strict JSON; listeners hear what it writes."""

import json
import math
import re
import sys
import types

import numpy as np
import pytest

from gentk.engine.log import Log, duration, json_text, listener, read_metrics, tidy
from gentk.errors import MissingAsset, RecipeError, RunFailed


def steps(path):
    return [row["step"] for row in read_metrics(path)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def metrics(folder):
    return folder / "metrics.jsonl"


def filled(folder, *logged):
    with Log(folder) as log:
        for step in logged:
            log.metrics(step, 10 * step, {"loss": 1 / step})


def test_lines_are_on_disk_at_once_and_hold_what_was_given(folder, metrics):
    with Log(folder) as log:
        log.metrics(1, 128, {"fake/loss": 0.5, "n": np.float32(2)})
        assert read_metrics(metrics) == [{"step": 1, "images": 128, "fake/loss": 0.5, "n": 2.0}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_null(folder, metrics, value):
    with Log(folder) as log:
        log.metrics(1, 1, {"loss": value})
    assert '"loss": null' in metrics.read_text()
    assert read_metrics(metrics)[0]["loss"] is None


def test_absent_file_has_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(
    "torn", ['{"step": 3, "im', '{"step": 3}garbage\n', "\0\0\0\0", "[]\n", '{"loss": 1}', b"\xff\xfe"]
)
def test_torn_last_line_is_passed_over_and_not_written_behind(folder, metrics, torn):
    filled(folder, 1, 2)
    with metrics.open("ab") as file:
        file.write(torn if isinstance(torn, bytes) else torn.encode())
    assert steps(metrics) == [1, 2]
    filled(folder, 4)
    assert steps(metrics) == [1, 2, 4]


def test_whole_last_line_without_its_newline_is_kept(folder, metrics):
    filled(folder, 1, 2)
    metrics.write_text(metrics.read_text().rstrip("\n"))
    filled(folder, 3)
    assert steps(metrics) == [1, 2, 3]


def test_damage_before_the_end_is_named(folder, metrics):
    filled(folder, 1, 2, 3)
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([lines[0], lines[1][:5], lines[2]]) + "\n")
    with pytest.raises(RunFailed, match=re.escape(f"{metrics}:2: ")):
        read_metrics(metrics)


def test_truncate_forgets_what_a_resumed_run_writes_again(folder, metrics):
    filled(folder, 1, 2, 3, 4)
    before = metrics.read_bytes().splitlines()
    with Log(folder) as log:
        log.truncate(2)
        assert steps(metrics) == [1, 2]
        assert metrics.read_bytes().splitlines() == before[:2]
        log.metrics(3, 30, {"loss": 9.0})
    assert steps(metrics) == [1, 2, 3]
    assert read_metrics(metrics)[-1]["loss"] == 9.0
    assert [path.name for path in folder.iterdir() if path.suffix == ".tmp"] == []


def test_truncate_copes_with_a_torn_line_and_with_nothing(folder, metrics):
    with Log(folder) as log:
        log.truncate(0)
        log.metrics(5, 5, {})
        with metrics.open("a") as file:
            file.write('{"step": 6')
        log.truncate(5)
        log.metrics(6, 6, {})
    assert steps(metrics) == [5, 6]


def test_text_has_a_time_and_indents_what_follows(folder):
    with Log(folder) as log:
        log.text("started\nwith two lines")
        log.text("done")
    first, second, third = (folder / "log.txt").read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  started", first)
    assert second == "    with two lines"
    assert third.endswith("  done")


def test_a_full_disk_is_a_failed_run(folder):
    folder.mkdir()
    (folder / "log.txt").symlink_to("/dev/full")
    log = Log(folder)
    with pytest.raises(RunFailed, match=r"log.txt: cannot write: No space left"):
        log.text("started")
    log.close()  # has nothing to add


def test_unknown_listener(tmp_path):
    with pytest.raises(RecipeError, match="did you mean `wandb`"):
        listener("wandbb", tmp_path)


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_absent_package_is_told_before_the_run_starts(folder, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingAsset, match=name) as told:
        Log(folder, [name])
    assert told.value.hint == "pip install gentk[track]"


def test_a_folder_called_wandb_is_not_the_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    with pytest.raises(MissingAsset):
        Log(folder, ["wandb"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_hears_and_a_resumed_run_hides_what_it_repeats(folder):
    pytest.importorskip("tensorboard", reason="needs the extra `track`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Log(folder, ["tensorboard"]) as log:
        for step in (1, 2, 3):
            log.metrics(step, step, {"loss": float(step)})
    with Log(folder, ["tensorboard"]) as log:
        log.truncate(1)
        log.metrics(2, 2, {"loss": 20.0})
    heard = EventAccumulator(str(folder / "tensorboard"))
    heard.Reload()
    assert [(event.step, event.value) for event in heard.Scalars("loss")] == [(1, 1.0), (2, 20.0)]


class Board:
    """Stands in for W&B: it needs an account, and what matters here is what it is told."""

    def __init__(self):
        self.opened, self.heard, self.finished = [], [], 0

    def init(self, **options):
        self.opened.append(options)
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, values):
        self.heard.append(values)

    def finish(self):
        self.finished += 1


def test_wandb_keeps_one_run_per_folder(folder, tmp_path, monkeypatch):
    board = Board()
    monkeypatch.setitem(sys.modules, "wandb", board)
    for step in (1, 2):
        with Log(folder, ["wandb"]) as log:
            log.metrics(step, step, {"loss": 0.5})
    Log(tmp_path / "other", ["wandb"]).close()
    assert board.heard == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}]
    first, second, other = (options["id"] for options in board.opened)
    assert first == second != other
    assert all(options["resume"] == "allow" for options in board.opened)
    assert board.finished == 3


def test_json_text_takes_paths_and_nested_numbers(tmp_path):
    text = json_text({"path": tmp_path, "a": (1, [math.nan, {"b": math.inf}])})
    assert json.loads(text) == {"path": str(tmp_path), "a": [1, [None, {"b": None}]]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (0, "0"),
        (0.0, "0"),
        (35, "35"),
        (1234567, "1234567"),
        (2.06, "2.06"),
        (1.0, "1"),
        (100.0, "100"),
        (0.123456, "0.1235"),
        (-3.14159, "-3.142"),
        (1234.5678, "1235"),
        (9.99996, "10"),
        (0.99996, "1"),
        (1e-5, "1e-5"),
        (1.23456e-7, "1.235e-7"),
        (1e20, "1e20"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_tidy(value, text):
    assert tidy(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (3.14, "3.1 s"),
        (9.99, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_the_text_is_kept_in_files_of_bounded_size(folder, monkeypatch):
    monkeypatch.setattr("gentk.engine.log.LARGEST", 500)
    with Log(folder) as log:
        for k in range(100):
            log.text(f"line {k:03}")
    files = sorted(folder.glob("log*.txt"))
    assert [path.name for path in files] == ["log.1.txt", "log.2.txt", "log.3.txt", "log.4.txt", "log.txt"]
    assert all(path.stat().st_size < 600 for path in files)
    kept = "".join((folder / f"log{name}.txt").read_text() for name in (".4", ".3", ".2", ".1", "")).split()
    numbers = [int(word) for word in kept if len(word) == 3 and word.isdigit()]
    assert numbers == list(range(numbers[0], 100)), "the newest lines, none missing between"


def test_a_log_that_cannot_be_renamed_goes_on(folder, monkeypatch):
    monkeypatch.setattr("gentk.engine.log.LARGEST", 50)

    def refused(self, target):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.replace", refused)
    with Log(folder) as log:
        for k in range(5):
            log.text(f"line {k}")
    assert (folder / "log.txt").read_text().count("line") == 5
