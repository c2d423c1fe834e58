"""The models of the best preview are kept, and a run that has left it far behind says so, once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from gentk.engine.keeping import watch
from gentk.engine.method import Export, Result
from gentk.nets.weights import load_into
from gentk.recipe.load import loads
from gentk.recipe.stamp import read_header
from tests.conftest import DENOISER
from tests.engine.tiny import Folder


class Watched(Folder):
    """A folder with a recipe, and what is watched in it: previews of one number each."""

    class job:
        quiet = True
        recipe = loads(DENOISER, source="x").recipe

    def see(self, step: int, fd: float, *, export: bool = True) -> None:
        net = nn.Linear(1, 1)
        nn.init.constant_(net.weight, step)
        watch(self, step, Result({"fd": fd}, exports={"generator": Export(net, {"kind": "x"})} if export else {}))  # type: ignore[arg-type]

    def kept(self) -> float:
        net = nn.Linear(1, 1)
        load_into(net, self.folder / "best" / "generator.safetensors")
        return float(net.weight.detach())


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Watched]:
    folder = Watched(tmp_path / "run")
    yield folder
    folder.log.close()


def test_the_best_models_are_kept(run: Watched) -> None:
    for step, fd in ((0, 9.0), (10, 4.0), (20, 5.0), (30, 3.5), (40, 3.6)):
        run.see(step, fd)
    assert run.info["best"] == {"step": 30, "fd": 3.5}
    assert run.kept() == 30
    assert read_header(run.folder / "best" / "generator.safetensors")["metrics"] == {"fd": 3.5}
    assert run.warnings == []


def test_a_resumed_run_goes_on_from_the_best_there_was(run: Watched) -> None:
    run.see(10, 4.0)
    run.info = json.loads(json.dumps(run.info))  # what run.json holds
    run.see(20, 5.0)
    assert run.kept() == 10


@pytest.mark.parametrize("far", [12.1, 1e9, math.nan, math.inf])
def test_divergence_is_said_once(run: Watched, far: float) -> None:
    run.see(10, 4.0)
    run.see(20, 12.0)  # three times as far is the limit
    assert run.warnings == []
    run.see(30, far)
    run.see(40, far)
    assert len(run.warnings) == 1
    assert "step 30" in run.warnings[0]
    assert "4 at step 10" in run.warnings[0]
    assert run.info["diverged"] == 30
    assert run.kept() == 10


def test_previews_without_figure_or_models_are_not_watched(run: Watched) -> None:
    run.see(10, 4.0, export=False)
    watch(run, 20, Result({"loss": 1.0}, exports={"generator": Export(nn.Linear(1, 1), {})}))  # type: ignore[arg-type]
    assert run.info == {}
    assert not (run.folder / "best").exists()


def test_a_rank_takes_the_distance_s_place(run: Watched) -> None:
    """An aligned generator's distance is least at the start: what it is kept by is its own; infinity is never kept."""
    for step, rank, fd in ((0, 0.5, 1.0), (10, 0.2, 9.0), (20, math.inf, 0.1), (30, 0.3, 0.1)):
        net = nn.Linear(1, 1)
        nn.init.constant_(net.weight, step)
        watch(run, step, Result({"fd": fd}, exports={"generator": Export(net, {"kind": "x"})}, rank=rank))  # type: ignore[arg-type]
    assert run.info["best"] == {"step": 10, "rank": 0.2}
    assert run.kept() == 10
    assert run.warnings == []


def test_remarks_are_said_once_and_an_end_is_noted(run: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    flag = {"kind": "flag", "name": "diversity", "words": "all alike."}
    note = {"kind": "note", "name": "enough", "words": "that will do."}
    warning = {"kind": "warning", "name": "cut", "words": "too long."}
    run.job.quiet = False
    try:
        watch(run, 10, Result(remarks=(flag,)))  # type: ignore[arg-type]
        watch(run, 20, Result(remarks=(flag | {"words": "more alike."}, note, warning), halt=True))  # type: ignore[arg-type]
    finally:
        run.job.quiet = True
    said = ["Step 10: all alike.", "Step 20: that will do.", "Step 20: too long."]
    assert [each["words"] for each in run.info["remarks"]] == said
    assert run.warnings == ["step 10: all alike.", "step 20: too long."], "a note is no warning"
    told = "warning: step 10: all alike.\nstep 20: that will do.\nwarning: step 20: too long.\n"
    assert capsys.readouterr().err == told
    assert "step 20: that will do." in (run.folder / "log.txt").read_text(), "a run that ends early says why"
    assert run.info["halted"] == 20
