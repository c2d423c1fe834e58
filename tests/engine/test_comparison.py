"""The page that compares runs: groups, intervals, curves and pictures, from folders in every state."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from PIL import Image
from scipy import stats

from gentk.engine import comparison
from gentk.engine.curves import family
from gentk.engine.log import Log
from gentk.errors import GentkError


def run(folder: Path, *, seed: int, lr: float = 1e-3, fd: float | None = None, steps: int = 3, **facts: object) -> Path:
    with Log(folder) as log:
        for step in range(1, steps + 1):
            log.metrics(step, 16 * step, {"generator/loss": 1 / step + seed, "memory_mb": 5})
    info = {"status": "done", "task": "distill", "method": "sim", "subject": "digits", "seconds": 30.0}
    (folder / "run.json").write_text(json.dumps(info | {"metrics": {} if fd is None else {"fd": fd}} | facts))
    (folder / "recipe.yaml").write_text(
        f"task: distill\nseed: {seed}\noptim: {{lr: {lr}}}\nexpect: {{fd: {{ours: {fd}}}}}\n"
    )
    (folder / "samples").mkdir()
    Image.new("L", (4, 4)).save(folder / "samples" / f"students-{steps:08d}.png")
    return folder


def test_the_interval_is_students() -> None:
    """t(0.975, 2) = 4.30265: tables. The second derivation is scipy's own interval."""
    mean, half = comparison.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    low, high = stats.t.interval(0.95, 3, loc=7.25, scale=stats.sem([1.0, 7.0, 9.0, 12.0]))
    mean, half = comparison.interval([1.0, 7.0, 9.0, 12.0])
    assert half is not None
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert comparison.interval([5.0]) == (5.0, None)


def test_groups_are_recipes_but_for_the_seed_and_what_they_claim(tmp_path: Path) -> None:
    folders = [run(tmp_path / f"{lr}-{seed}", seed=seed, lr=lr, fd=lr + seed) for lr in (0.1, 0.2) for seed in (0, 1)]
    found = comparison.groups([comparison.read(folder) for folder in folders])
    assert [group.label for group in found] == ["optim.lr=0.1", "optim.lr=0.2"]
    assert [len(group.members) for group in found] == [2, 2]
    assert found[1].values("fd") == [0.2, 1.2]
    assert found[0].colour != found[1].colour


def test_labels_are_as_few_keys_as_tell_settings_apart() -> None:
    def row(*values: object) -> list[list[object] | None]:
        return [[value] for value in values]

    differ = {"a": row(1, 2, 1), "b": row(1, 2, 1), "method.name": row("sim", "sid", "sid"), "c": row(7, 8, 9)}
    assert comparison._labels(differ, 3) == ["sim, a=1", "sid, a=2", "sid, a=1"]
    assert comparison._labels({"lr": row(0.1, 0.2)}, 2) == ["lr=0.1", "lr=0.2"]
    grid = {"lr": row(1, 1, 2, 2), "c": row(3, 4, 3, 4)}
    assert comparison._labels(grid, 4) == ["lr=1, c=3", "lr=1, c=4", "lr=2, c=3", "lr=2, c=4"]
    assert comparison._labels({}, 1) == ["all runs"]


def test_unfinished_runs_and_repeated_seeds_do_not_count(tmp_path: Path) -> None:
    folders = [
        run(tmp_path / "a", seed=0, fd=1.0),
        run(tmp_path / "again", seed=0, fd=1.0),
        run(tmp_path / "b", seed=1, fd=3.0),
        run(tmp_path / "c", seed=2, fd=99.0, status="failed", error="the loss is not finite"),
        run(tmp_path / "d", seed=3, fd=None),
    ]
    (group,) = comparison.groups([comparison.read(folder) for folder in folders])
    assert group.values("fd") == [1.0, 3.0]
    page = comparison.write(folders, tmp_path / "page.html").read_text()
    assert "2 \u00b1 13" in page, "t(0.975, 1) s / sqrt(2) = 12.706, s = sqrt(2)"
    assert "4 of 5" in page
    assert "the loss is not finite" in page


def test_the_page_stands_alone_and_shows_everything(tmp_path: Path) -> None:
    folders = [run(tmp_path / f"{lr}{seed}", seed=seed, lr=lr, fd=seed + lr) for lr in (0.1, 0.2) for seed in (0, 1)]
    page = comparison.write(folders, tmp_path / "compare.html").read_text()
    assert page.count("<svg") == 1, "one figure per loss, none for the machine's state"
    assert page.count("data:image/png;base64") == 4
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page
    assert "optim.lr" in page
    assert all(folder.name in page for folder in folders)
    assert list(tmp_path.glob(".compare*")) == []


def test_words_of_runs_are_text_not_html(tmp_path: Path) -> None:
    folder = run(tmp_path / "<b>", seed=0, subject="<script>x</script>", status="failed", error="<i>&")
    page = comparison.write([folder, run(tmp_path / "c", seed=1)], tmp_path / "p.html").read_text()
    assert "<script>" not in page
    assert "&lt;i&gt;&amp;" in page


def test_a_damaged_metrics_file_hides_no_other_run(tmp_path: Path) -> None:
    broken = run(tmp_path / "a", seed=0)
    (broken / "metrics.jsonl").write_text("nonsense\n{}\n")
    assert "<svg" in comparison.write([broken, run(tmp_path / "b", seed=1)], tmp_path / "p.html").read_text()
    with pytest.raises(GentkError, match="not a run folder"):
        comparison.read(tmp_path / "none")


def test_the_mean_curve_is_over_what_all_members_have() -> None:
    drawing = family([("#123456", [[(1, 2.0), (2, 4.0)], [(1, 4.0), (2, 8.0), (3, 100.0)]])], x_label="step")
    lines = re.findall(r'<path class="(\w+)" d="M([^"]*)"', drawing)
    assert [kind for kind, _ in lines] == ["thin", "thin", "curve"]
    heights = {kind: [float(p.split(",")[1]) for p in path.split("L")] for kind, path in lines}
    assert len(heights["curve"]) == 2
    first, second = ([float(p.split(",")[1]) for p in path.split("L")] for _, path in lines[:2])
    # y is logarithmic here (2 to 100): the mean 3 of 2 and 4 lies above the middle of their heights
    span = first[0] - second[0]
    assert first[0] - heights["curve"][0] == pytest.approx(span * math.log(1.5) / math.log(2), abs=0.11)


def test_members_without_a_shared_x_have_no_mean() -> None:
    drawing = family([("red", [[(1, 2.0)], [(2, 4.0)]]), ("blue", [[], [(1, 3.0)]])], x_label="step")
    assert drawing.count('class="thin"') == 2
    assert drawing.count('class="curve"') == 1
