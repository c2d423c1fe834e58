"""`--sweep` and `--seeds`: which points a grid has, what their folders are called, and which words are refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from gentk.cli import sweeping
from gentk.cli.app import app
from gentk.engine.log import Log
from gentk.errors import RecipeError
from tests.conftest import DENOISER

Write = Callable[[str, str], Path]


def grid(*sweeps: str, seeds: str | None = None) -> list[sweeping.Point]:
    return sweeping.points(sweeping.axes(sweeps, seeds))


def test_the_last_axis_is_the_fastest_and_seeds_come_last() -> None:
    found = grid("method.alpha=0.5,1.0", seeds="0-2")
    assert [point.name for point in found] == [f"alpha={a},seed={s}" for a in ("0.5", "1.0") for s in (0, 1, 2)]
    assert found[4].sets == ("method.alpha=1.0", "seed=1")


def test_no_axis_is_one_point_that_sets_nothing() -> None:
    assert grid() == [sweeping.Point()]


def test_values_are_yaml_and_go_back_as_yaml() -> None:
    found = grid("optim.betas=[0.0, 0.9],[0.5, 0.99]", "data=points:ring8,points:rings", "x=null,true,1e-4,-1")
    assert len(found) == 16
    assert found[0].sets == ("optim.betas=[0.0, 0.9]", "data=points:ring8", "x=null")
    assert found[-1].sets == ("optim.betas=[0.5, 0.99]", "data=points:rings", "x=-1")
    assert found[2].sets[2] == "x=0.0001"
    assert all(set(point.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._=,+-") for point in found)


def test_keys_of_one_end_keep_their_sections() -> None:
    assert grid("optim.fake.lr=1e-3,1e-4", "optim.generator.lr=1e-4,1e-5")[0].name == (
        "optim.fake.lr=0.001,optim.generator.lr=0.0001"
    )


@pytest.mark.parametrize(("text", "seeds"), [("0-2", [0, 1, 2]), ("7", [7]), ("0,5,3", [0, 5, 3])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert [point.sets for point in grid(seeds=text)] == [(f"seed={seed}",) for seed in seeds]


@pytest.mark.parametrize(
    ("sweeps", "seeds", "words"),
    [
        (["alpha"], None, "KEY=VALUE"),
        (["alpha="], None, "KEY=VALUE"),
        (["alpha=[1,2"], None, "not a list of YAML values"),
        (["alpha=1,1"], None, "twice"),
        (["alpha=1,2", "alpha=3"], None, "twice"),
        (["seed=1,2"], "0-1", "twice"),
        (["alpha=a b,a_b"], None, "share the folder"),
        ([], "2-0", "not a range"),
        ([], "0-99999999", "not a range"),
        ([], "1,1", "not a range"),
        (["a=" + ",".join(map(str, range(200))), "b=" + ",".join(map(str, range(200)))], None, "40,000 runs"),
    ],
)
def test_what_is_refused(sweeps: list[str], seeds: str | None, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        grid(*sweeps, seeds=seeds)


def gentk(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_wrong_point_stops_all_before_any_has_run(write: Write, tmp_path: Path) -> None:
    words = ("train", "--recipe", write("r.yaml", DENOISER), "--out", tmp_path / "s", "--quiet")
    for sweep, said in (("method.alpha=1,2", "unknown key"), ("train.batch=16,none", "train.batch")):
        result = gentk(*words, "--sweep", sweep)
        assert result.exit_code == 2
        assert said in result.stderr
    result = gentk(*words, "--seeds", "0-1", "--seed", "3")
    assert (result.exit_code, "both say" in result.stderr) == (2, True)
    assert not (tmp_path / "s").exists()


def test_a_sweep_stops_goes_on_compares_and_equals_the_direct_runs(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = write("r.yaml", DENOISER), tmp_path / "s"
    words = ("train", "--recipe", recipe, "--sweep", "optim.lr=1e-3,1e-2", "--seeds", "0-1", "--out", out)
    metrics = Log.metrics

    def interrupted(self: Log, step: int, images: int, values: dict[str, float]) -> None:
        metrics(self, step, images, values)
        if self._path.parent.name == "lr=0.001,seed=1" and step == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Log, "metrics", interrupted)
    stopped = gentk(*words, "--quiet")
    assert stopped.exit_code == 75, stopped.output
    status = {path.parent.name: json.loads(path.read_text())["status"] for path in out.glob("*/run.json")}
    assert status == {"lr=0.001,seed=0": "done", "lr=0.001,seed=1": "stopped"}
    monkeypatch.undo()
    first = (out / "lr=0.001,seed=0" / "run.json").read_bytes()
    result = gentk(*words, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)
    names = [Path(answer["run"]).name for answer in answers]
    assert names == ["lr=0.001,seed=0", "lr=0.001,seed=1", "lr=0.01,seed=0", "lr=0.01,seed=1"]
    assert (out / "lr=0.001,seed=0" / "run.json").read_bytes() == first, "a run that was done stays as it was"
    direct = gentk(
        "train", "--recipe", recipe, "--set", "optim.lr=1e-2", "--seed", 1, "--out", tmp_path / "d", "--quiet"
    )
    assert direct.exit_code == 0, direct.output
    one, other = (load_file(f / "export" / "denoiser.safetensors") for f in (tmp_path / "d", out / "lr=0.01,seed=1"))
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    page = (out / "compare.html").read_text()
    assert page.count("<svg") >= 1
    assert "optim.lr=0.01" in page
    assert "2 of 2" in page


def test_a_run_that_fails_is_named_and_the_others_go_on(write: Write, tmp_path: Path) -> None:
    recipe = write("r.yaml", DENOISER.replace("lr: 1e-3", "lr: 1e-3, clip: 1.0"))
    words = ("train", "--recipe", recipe, "--out", tmp_path / "s", "--sweep", "optim.lr=1e+30,1e-3")
    result = gentk(*words, "--set", "train.nan=stop")
    assert result.exit_code == 1
    assert "1 of 2 runs failed: lr=1e+30" in result.stderr.replace("1.0e+30", "1e+30")
    assert json.loads((tmp_path / "s" / "lr=0.001" / "run.json").read_text())["status"] == "done"
    assert gentk(*words, "--resume").exit_code == 1


def test_resume_needs_a_sweep_that_was_begun(write: Write, tmp_path: Path) -> None:
    words = ("train", "--recipe", write("r.yaml", DENOISER), "--out", tmp_path / "s", "--seeds", "0-1", "--resume")
    result = gentk(*words)
    assert (result.exit_code, "holds none of these runs" in result.stderr) == (2, True)


def test_more_values_of_the_same_keys_find_the_same_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    monkeypatch.setattr("gentk.cli.running._run", lambda asked, loaded, folder, mode: found.append(folder.parent) or {})
    monkeypatch.setattr("gentk.cli.running._page", lambda asked: None)
    for words in (["--seeds", "0-1"], ["--seeds", "0-5"], ["--seeds", "0", "--set", "train.batch=8"]):
        assert gentk("train", "--recipe", write("r.yaml", DENOISER), *words).exit_code == 0
    assert len(set(found)) == 2
    assert found[0] == found[2] == found[7] != found[8]
