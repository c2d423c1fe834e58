"""`train vsdm`: stages, resume, what is kept, and drawing from its models by `sample`; forecasts of a small series."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gentk.cli.app import app
from gentk.data import series
from gentk.engine import loop, rng
from gentk.engine.forecasting import Frame, Scale, forecast
from gentk.engine.method import Batch, Result
from gentk.engine.paths import straightness
from gentk.engine.stop import StopRequest
from gentk.errors import RecipeError
from gentk.processes.linear_denoiser import LinearDenoiser
from gentk.processes.models import load
from gentk.recipe import registry
from gentk.recipe.schema import Data, Ema
from gentk.recipe.series import Series
from gentk.tasks.train._bridging import Bridging
from tests.engine.tiny import Folder
from tests.tasks.toys import CPU

POINTS = """\
task: train
about: a bridge of wide points, small enough for a test
size: smoke
data: {name: "points:spiral-8y", points: 400}
net: {name: mlp, width: 16, blocks: 1}
method: {name: vsdm, stages: 2, stage: 4, paths: 64, path_steps: 8}
optim: {name: adam, lr: 1e-3}
ema: {half_life: 500}
train: {steps: 12, batch: 16, log_every: 4, checkpoint_every: 3}
measure: {features: identity, n: 64, steps: 4, batch: 64}
"""


def recipe(data: str = "points:spiral-8y", net: dict[str, Any] | None = None, **method: Any) -> Any:
    return registry.recipe_schema("train", "vsdm")(
        task="train",
        about="a test",
        size="smoke",
        data={"name": data, "points": 2000},
        net=net or {"name": "mlp", "width": 16, "blocks": 1},
        method={"name": "vsdm", "stages": 2, "stage": 4, "paths": 200, "path_steps": 10} | method,
        optim={"lr": 1e-3},
        train={"steps": 12, "batch": 16, "checkpoint_every": 3},
    )


def fit(method: Any, folder: Path, stop: StopRequest | None = None) -> loop.State:
    run = Folder(folder)
    try:
        return loop.fit(
            method,
            train=method.recipe.train,
            average=Ema(half_life=500),
            seed=0,
            where=CPU,
            run=run,  # type: ignore[arg-type]
            stop=stop or StopRequest(),
        )
    finally:
        run.log.close()


def test_steps_in_a_come_at_the_beginning_of_stages() -> None:
    """A is 0 in the first stage, moves at steps 4 and 8 and never again; with `stages: 0` it stays 0."""
    for stages, changes in ((2, [4, 8]), (0, [])):
        method = Bridging(recipe(stages=stages), CPU)
        seen = [method.nets["denoiser"].strength.clone()]
        for step in range(14):
            names = [phase.name for phase in method.phases(step)]
            assert names == ["score"]
            seen.append(method.nets["denoiser"].strength.clone())
        assert [k for k in range(14) if not torch.equal(seen[k], seen[k + 1])] == changes
        assert not bool(seen[0].any())
        if changes:  # the wide axis is to be contracted, the other hardly
            assert float(seen[-1][0, 1]) < -0.02
            assert float(seen[-1][0, 1]) < float(seen[-1][0, 0])


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Stopped between the two steps in A and gone on with from the checkpoint: networks and A as without the stop."""

    class Unseen(Bridging):
        def preview(self, averaged: Any) -> Result:
            return Result()

    class After(Unseen):
        def phases(self, step: int) -> Any:
            if step == 7:
                raise KeyboardInterrupt
            yield from super().phases(step)

    with pytest.raises(KeyboardInterrupt):
        fit(After(recipe(), CPU), tmp_path / "parts")
    whole = fit(Unseen(recipe(), CPU), tmp_path / "whole")
    again = fit(Unseen(recipe(), CPU), tmp_path / "parts")
    for one, other in ((whole.nets, again.nets), (whole.averaged, again.averaged)):
        a, b = one["denoiser"].state_dict(), other["denoiser"].state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert bool(whole.averaged["denoiser"].strength.any())  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("update", ["closed", "gradient"])
@pytest.mark.parametrize(
    "drift", [{"form": "full"}, {"form": "diag", "cells": 2}, {"form": "full", "cells": 2}], ids=str
)
def test_every_form_and_update_moves_a(update: str, drift: dict[str, Any]) -> None:
    method = Bridging(recipe(update=update, drift=drift), CPU)
    list(method.phases(4))
    a = method.nets["denoiser"].matrix()
    assert bool(torch.isfinite(a).all())
    assert float(a[1, 1]) < -0.01
    loss, _ = method._loss(Batch(16, method.data.batch(torch.arange(16))[0]), rng.generator(1))
    assert bool(torch.isfinite(loss))


def test_images_have_classes_and_a_diagonal_drift() -> None:
    method = Bridging(recipe("digits", {"name": "unet", "width": 8}, spread="common", start="gaussian", paths=20), CPU)
    denoiser = method.nets["denoiser"]
    assert denoiser.strength.shape == (1, 64)
    before = denoiser.strength.clone()
    list(method.phases(4))
    assert not torch.equal(before, denoiser.strength)
    x, y = method.data.batch(torch.arange(16))
    loss, _ = method._loss(Batch(16, x, y), rng.generator(1))
    assert 0.3 < float(loss.detach()) < 3  # the preconditioned error of an untrained network is of order 1


def test_the_command_trains_and_sample_draws(tmp_path: Path, write: Callable[[str, str], Path], run: Any) -> None:
    """train, then sample by an ODE and an SDE solver, then evaluate: files, figures, and the law of the header."""
    out = tmp_path / "run"
    answer = run("train", "vsdm", "--recipe", str(write("r.yaml", POINTS)), "--out", str(out), "--json", "--quiet")
    metrics = answer["metrics"]
    assert {"fd", "chord_arc", "energy", "spread_0", "spread_1", "rate_least"} <= set(metrics)
    assert 0 < metrics["chord_arc"] <= 1
    assert (out / "samples" / "paths.png").is_file()
    model = load(str(out), kinds=("bridge",), where=CPU)
    assert isinstance(model.net, LinearDenoiser)
    assert float(1 - 2 * model.net.strength.max()) == pytest.approx(metrics["rate_least"])
    with pytest.raises(RecipeError, match="is a bridge"):
        load(str(out), kinds=("denoiser",), where=CPU)
    for solver, own in (("dpmpp-2m", []), ("sa-solver", ["--set", "method.tau=1.0"])):
        to = tmp_path / solver
        words = ["--model", str(out), "-n", "32", "--set", "nfe=6", "--set", "grid.name=time", *own]
        drawn = run("sample", solver, *words, "--out", str(to), "--json", "--quiet")
        assert drawn["metrics"]["nfe"] == 6
        assert (to / "samples" / "paths.png").is_file()
        with np.load(to / "samples.npz") as file:
            x = file["samples"]
        assert x.shape == (32, 2)
        assert bool(np.isfinite(x).all())
        # few steps of an SDE leave noise in both axes; the flow keeps what the preconditioning knows of them
        assert x[:, 1].std() > (3 if solver == "dpmpp-2m" else 1) * x[:, 0].std()

    found = run(
        *("evaluate", "points", "--samples", str(out), "--reference", "points:spiral-8y", "--set", "method.n=200"),
        *(
            "--set",
            "method.steps=4",
            "--set",
            "reference.points=400",
            "--out",
            str(tmp_path / "e"),
            "--json",
            "--quiet",
        ),
    )
    assert 0 < found["metrics"]["sliced_w2"] < 20
    assert "ksd" not in found["metrics"]


@pytest.fixture
def run() -> Any:
    from typer.testing import CliRunner

    def command(*words: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, done.output
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return command


def test_straightness_has_no_scale() -> None:
    """A quarter circle: chord / arc = sqrt(8) / pi; times 50 the same. A straight line: 1 and 1; a slow start: more."""
    angle = torch.linspace(0, math.pi / 2, 400)[:, None]
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    found = straightness(circle)
    assert found["chord_arc"] == pytest.approx(math.sqrt(8) / math.pi, rel=1e-4)
    assert straightness(50 * circle) == pytest.approx(found, rel=1e-4)
    line = torch.linspace(0, 1, 11)[:, None, None] * torch.tensor([3.0, -4.0])
    assert straightness(line) == pytest.approx({"chord_arc": 1.0, "energy": 1.0}, rel=1e-5)
    assert straightness(torch.linspace(0, 1, 11)[:, None, None] ** 3 * torch.ones(2))["energy"] > 1.5


def wave(path: Path, rows: int = 120) -> Path:
    """Two series of period 6, one of them the other's sum of two rows, with a little noise."""
    gen = torch.Generator().manual_seed(0)
    t = torch.arange(rows, dtype=torch.float64)
    a = (2 * math.pi * t / 6).sin() + 0.05 * torch.randn(rows, generator=gen, dtype=torch.float64)
    text = "a,b\n" + "".join(f"{10 + x:.6f},{5 - 2 * x:.6f}\n" for x in a.tolist())
    path.write_text(text)
    return path


WINDOWS = Series(context=18, horizon=6, test=3, validation=1, season=6, paths=8, nfe=4, hidden=8)


@pytest.mark.parametrize("season", [1, 6])
def test_features_look_back_only(tmp_path: Path, season: int) -> None:
    """A change of row 20 changes no feature of a row before it; the seasonal one is x_{t + 1 - season} - x_t."""
    windows = WINDOWS.model_copy(update={"season": season})
    data = series.load(Data(name=f"series:{wave(tmp_path / 'x.csv')}"), windows)
    x, first = data.at(torch.tensor([3, 40])), torch.tensor([3, 40])
    frame = Frame.of(x[:, :18], Scale.of(data.values[: data.train]), windows)
    found = frame.features(x, first)
    assert found.shape == (2, 24, windows.features(2))
    other = x.clone()
    other[:, 20] += 5
    changed = (frame.features(other, first) != found).any(2).any(0)
    assert not bool(changed[:20].any())
    assert bool(changed[20])
    if season > 1:
        t = 11
        torch.testing.assert_close(found[:, t, 4:6], ((x[:, t - 5] - x[:, t]) / frame.step[:, 0]).clamp(-10, 10))


@pytest.mark.parametrize("target", ["level", "step"])
@pytest.mark.parametrize("scaling", ["standard", "window"])
def test_rows_come_back_from_their_targets(tmp_path: Path, target: str, scaling: str) -> None:
    windows = WINDOWS.model_copy(update={"target": target, "scaling": scaling})
    data = series.load(Data(name=f"series:{wave(tmp_path / 'x.csv')}"), windows)
    x = data.at(torch.tensor([0, 7]))
    frame = Frame.of(x[:, :18], Scale.of(data.values[: data.train]), windows)
    y = frame.targets(x)
    torch.testing.assert_close(frame.row(y[:, 8], x[:, 8]), x[:, 9])


def test_forecasts_train_are_drawn_and_are_causal(
    tmp_path: Path, write: Callable[[str, str], Path], run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands end to end; then: step by step or whole, the recurrent state is the same, so paths are causal."""
    text = POINTS.replace('"points:spiral-8y", points: 400', f'"series:{wave(tmp_path / "x.csv")}"')
    text = text.replace("path_steps: 8", f"path_steps: 8, drift: {{form: full}}, series: {WINDOWS.model_dump_json()}")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("measure")) + "\n"
    out = tmp_path / "run"
    answer = run("train", "vsdm", "--recipe", str(write("s.yaml", text)), "--out", str(out), "--json", "--quiet")
    metrics = answer["metrics"]
    assert {"crps", "crps_sum", "crps_sum_naive", "crps_sum_naive_paths"} <= set(metrics)
    assert 0 < metrics["crps_sum"] < 0.5
    # 10 + x and 5 - 2 x: repeating the season is wrong by the noise alone, 0.05 sqrt(2) of each
    assert metrics["crps_sum_naive"] < 0.02
    to = tmp_path / "ahead"
    drawn = run("sample", "forecast", "--model", str(out), "-n", "8", "--out", str(to), "--json", "--quiet")
    assert drawn["metrics"]["n"] == 8
    with np.load(to / "forecast.npz") as file:
        assert file["paths"].shape == (8, 6, 2)
    rows = (to / "forecast.csv").read_text().splitlines()
    assert len(rows) == 7
    assert rows[1].startswith("120,")

    model = load(str(out), kinds=("forecaster",), where=CPU)
    data = series.load(Data(name=f"series:{tmp_path / 'x.csv'}"), WINDOWS)
    first = data.starts("test")
    x = data.at(first)
    scale = Scale(*(torch.tensor(each) for each in model.header["scale"]))
    states = []
    net = model.net.net
    whole = net.encode

    def watched(rows: Any, state: Any = None) -> Any:
        found = whole(rows, state)
        states.append(found[0][:, -1])
        return found

    monkeypatch.setattr(net, "encode", watched)
    paths = forecast(
        model.net,  # type: ignore[arg-type]
        scale,
        WINDOWS,
        x[:, :18],
        first,
        count=1,
        prior="exact",
        gen=torch.Generator().manual_seed(0),
    )
    assert paths.shape == (1, 3, 6, 2)
    full = torch.cat([x[:, :18], paths[0].float()], 1)
    frame = Frame.of(x[:, :18], scale, WINDOWS)
    again, _ = whole(frame.features(full, first))
    torch.testing.assert_close(torch.stack(states, 1), again[:, 17:], rtol=1e-3, atol=1e-3)


def test_a_series_needs_its_windows(tmp_path: Path) -> None:
    section = recipe(f"series:{wave(tmp_path / 'x.csv')}")
    with pytest.raises(RecipeError, match=r"method\.series"):
        registry.method_module("train", "vsdm").build(section, CPU)


def test_both_samplers_of_a_forecast_draw_the_law_of_the_steps(tmp_path: Path) -> None:
    """An untrained network is exact for Gaussian steps: the first row's covariance is the data's, by flow and by SDE.

    2,000 paths: each deviation within five of its standard errors, 1 / sqrt(4000). Control: an SDE of 3 evaluations.
    """
    windows = WINDOWS.model_copy(update={"season": 1})
    section = recipe(f"series:{wave(tmp_path / 'x.csv')}", drift={"form": "full"}, series=windows.model_dump())
    method: Any = registry.method_module("train", "vsdm").build(section.model_copy(update={"measure": None}), CPU)
    denoiser, first = method.nets["denoiser"].eval(), method.data.starts("test")[:1]
    context = method.data.at(first)[:, : windows.context]
    frame = Frame.of(context, method.scale, windows)
    unit = frame.row(torch.ones(1, 2), torch.zeros(1, 2)) - frame.row(torch.zeros(1, 2), torch.zeros(1, 2))
    wanted = denoiser.root.square().sum(1).sqrt() * unit[0].abs()

    def deviations(sampler: str, nfe: int) -> torch.Tensor:
        how = windows.model_copy(update={"sampler": sampler, "nfe": nfe, "horizon": 1})
        given = {"count": 2000, "prior": "exact", "gen": torch.Generator().manual_seed(0)}
        return forecast(denoiser, method.scale, how, context, first, **given)[:, 0, 0].std(0)

    for sampler, nfe in (("flow", 20), ("sde", 60)):
        torch.testing.assert_close(deviations(sampler, nfe), wanted, rtol=5 / 4000**0.5, atol=0)
    assert float((deviations("sde", 3) / wanted - 1).abs().max()) > 0.2
