"""`gentk align` as a user runs it: what a run shows and leaves, its alarms in words, how it ends early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from gentk.cli.app import app
from gentk.engine import rng
from gentk.metrics.features import extractor
from gentk.processes.models import load
from gentk.recipe.stamp import read_header
from gentk.tasks.align._watching import spread
from tests.engine import tiny
from tests.tasks.align_toys import build, recipe, write_generator
from tests.tasks.toys import CPU, VE, fit, write_teacher

SMALL = ("train.steps=4", "train.batch=16", "train.sample_every=2", "method.warmup=1", "method.watch.samples=40")


def gentk(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


def align(*words: object, sets: tuple[str, ...] = (), small: tuple[str, ...] = SMALL) -> Result:
    return gentk("align", *words, *(word for each in (*small, *sets) for word in ("--set", each)))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short alignment of the digits that ship, to two rewards, with an alarm that any fall of the spread sets off."""
    folder = tmp_path_factory.mktemp("align") / "run"
    sets = ("measure.n=200", "measure.preview=100", "train.log_every=1")
    result = align("dipp", "--reward", "class,brightness", "--out", folder, "--quiet", "--json", sets=sets)
    assert result.exit_code == 0, result.stderr or result.exception
    return folder


def test_a_run_shows_before_and_after(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    metrics = info["metrics"]
    for name in ("reward", "reward_class", "reward_brightness", "spread", "fd", "precision", "recall"):
        assert {f"{name}_before", f"{name}_after"} <= set(metrics), name
    total = metrics["reward_class_before"] + metrics["reward_brightness_before"]
    assert metrics["reward_before"] == pytest.approx(total, rel=1e-5)
    assert metrics["alpha_rew"] > 0
    assert metrics["spread_ratio"] == pytest.approx(metrics["spread_after"] / metrics["spread_before"])
    assert {p.name for p in (run / "samples").iterdir()} == {
        "before-after.png",
        *(f"before-after-{step:08d}.png" for step in (0, 2, 4)),
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {name for row in rows for name in row}
    for name in ("reward", "ratio", "grad_reward", "grad_divergence", "gap", "loss"):
        assert f"generator/{name}" in logged, name
    assert {"eval/reward", "eval/fd", "eval/spread", "eval/spread_ratio", "fake/loss"} <= logged
    page = (run / "report.html").read_text()
    for word in ("before-after", "eval/reward", "generator/ratio", "eval/spread_ratio", "alpha_rew"):
        assert word in page, word


def test_figures_before_are_those_of_the_generator_that_was_given(run: Path) -> None:
    metrics = json.loads((run / "run.json").read_text())["metrics"]
    model = load("sim-digits", kinds=("generator",), where=CPU)
    z, numbers = rng.noise(0, 0, 40, (1, 8, 8), purpose="start"), torch.arange(40) % 10
    with torch.no_grad():
        x = model.net(2.5 * z, torch.tensor(2.5), numbers).clamp(-1, 1)
        logs = load("classifier-digits", kinds=("classifier",), where=CPU).net(x).log_softmax(1)
    assert metrics["reward_class_before"] == pytest.approx(float(logs[torch.arange(40), numbers].mean()), rel=1e-3)
    features = extractor("classifier-digits", shape=(1, 8, 8), where=CPU)(x)
    own = torch.stack([(features[k::10] - features[k::10].mean(0)).square().sum() for k in range(10)])
    assert metrics["spread_before"] == pytest.approx(float((own.sum() / (40 - 10)).sqrt()), rel=1e-4)


def test_the_export_is_a_generator_that_can_be_drawn_from(run: Path, tmp_path: Path) -> None:
    header = read_header(run / "export" / "generator.safetensors")
    assert header["kind"] == "generator"
    assert header["sigma_init"] == 2.5
    assert header["teacher"] == "edm-digits"
    assert header["aligned"]["method"] == "dipp"
    assert header["aligned"]["rewards"] == ["class", "brightness"]
    result = gentk("sample", "one-step", "--model", run, "-n", 4, "--out", tmp_path / "s", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "s" / "samples" / "grid.png").is_file()
    again = gentk("align", "di-star", "--generator", run, "--dry-run")  # an aligned generator can be aligned again
    assert again.exit_code == 0, again.stderr
    assert "alpha_rew: 1 parameters" in again.stdout


def test_a_run_of_the_reward_alone_collapses_alarms_and_stops(tmp_path: Path) -> None:
    sets = (
        "method.leash=0", "method.alpha_rew=1.0", "optim.generator.lr=0.02", "train.steps=40", "train.sample_every=5",
        "method.watch.on_alarm=stop", "measure.preview=100", "measure.n=200", "ema.half_life=20",
    )  # fmt: skip
    words = ("dipp", "--reward", "brightness", "--out", tmp_path / "run")
    result = align(*words, sets=sets)
    assert result.exit_code == 0, result.stderr
    assert "diversity has collapsed: samples of one class differ by" in result.stderr
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["status"] == "done"
    assert info["step"] == info["halted"] < 40
    assert info["best"]["step"] < info["halted"], "the best is of before the alarm"
    assert (tmp_path / "run" / "best" / "generator.safetensors").is_file()
    flags = {each["name"] for each in info["remarks"] if each["kind"] == "flag"}
    assert "diversity" in flags
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"Step {info['halted']}: diversity has collapsed" in page
    assert align(*words, sets=sets).exit_code == 0, "it is done, and says so again"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["halted"] == info["halted"]


def points(folder: Path) -> dict[str, Any]:
    teacher = write_teacher(folder / "t.safetensors", process=VE, classes=2)
    return {"generator": str(write_generator(folder / "g.safetensors", teacher)), "teacher": str(teacher)}


def test_a_halted_run_that_was_killed_goes_on_to_where_it_halted(tmp_path: Path) -> None:
    """`halted` is a step: a run whose last checkpoint is older trains up to it, no further."""
    rewards = ({"name": "function", "of": "tests.tasks.align_toys:far"},)
    settings = {"name": "dipp", "rewards": rewards, "alpha_rew": 1.0, "warmup": 0}
    method = build(recipe(settings, **points(tmp_path)))
    state = fit(tmp_path / "run", method, steps=5)  # type: ignore[arg-type]
    assert state.step == 5
    before = tiny.Folder.__init__

    def with_halt(self: Any, folder: Path) -> None:
        before(self, folder)
        self.info["halted"] = 3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny.Folder, "__init__", with_halt)
        assert fit(tmp_path / "other", build(recipe(settings, **points(tmp_path))), steps=5).step == 3  # type: ignore[arg-type]


def test_enough_ends_the_training(tmp_path: Path) -> None:
    sets = ("method.watch.enough=-10.0", "measure=null")
    assert align("dipp", "--out", tmp_path / "run", "--quiet", sets=sets).exit_code == 0
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["halted"] == 0 or info["step"] == info["halted"]
    assert info["remarks"][0]["words"].endswith("the reward has reached -10: stopped")


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        ({}, []),
        ({"spread": 0.31}, []),
        ({"spread": 0.29}, ["diversity"]),
        ({"fd": 7.9, "reward": 1.0}, []),
        ({"fd": 8.1, "reward": 1.0}, ["hacking"]),
        ({"fd": 8.1, "reward": -1.0}, []),  # the reward fell: no hacking
        ({"other_clip": -1.1, "reward": 1.0}, ["other_clip"]),
        ({"other_clip": -0.9, "reward": 1.0}, []),
    ],
    ids=str,
)
def test_alarms(tmp_path: Path, seen: dict[str, float], names: list[str]) -> None:
    """Thresholds 0.3, 2 and half a standard deviation of 2, from a start of spread 1, fd 4, reward and clip 0."""
    rewards = ({"name": "function", "of": "tests.tasks.align_toys:far"},)
    watcher = build(recipe({"name": "dipp", "rewards": rewards, "alpha_rew": 1.0}, **points(tmp_path))).watcher
    watcher.start = {"spread": 1.0, "fd": 4.0, "reward": 0.0, "other_clip": 0.0}
    watcher.deviations = {"other_clip": 2.0}
    assert [each["name"] for each in watcher.alarms(watcher.start | seen)] == names


def test_spread_is_within_the_groups() -> None:
    """Two groups far apart, of standard deviation 1 and 2 in 3 dimensions: sqrt(3 (1 + 4) / 2), within 5 %."""
    gen = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(2000, 3, generator=gen), 100 + 2 * torch.randn(2000, 3, generator=gen)])
    groups = torch.arange(2).repeat_interleave(2000)
    assert spread(x, groups) == pytest.approx((3 * 5 / 2) ** 0.5, rel=0.05)
    assert spread(x, torch.zeros(4000)) > 50


def test_rewards_by_the_command_line(tmp_path: Path) -> None:
    plan = align("di-star", "--reward", "class, tests.tasks.align_toys:quadratic", "--dry-run", small=())
    assert plan.exit_code == 0, plan.stderr
    assert "of: tests.tasks.align_toys:quadratic" in plan.stdout
    for words, code, said in (
        (("--reward", ","), 2, "names no reward"),
        (("--set", "train.steps=20"), 2, "20 are no more than method.warmup, 150: the generator would never move"),
        (("--reward", "clss"), 2, "class"),
        (("--generator", "edm-digits"), 2, "is a denoiser, here a generator is needed"),
        (("--reward", "tests.tasks.align_toys:cut"), 2, "not differentiable"),
    ):
        failed = align("dipp", *words, "--out", tmp_path / "x", small=())
        assert failed.exit_code == code, failed.output
        assert said in failed.stderr
        assert "Traceback" not in failed.stderr
