"""`evaluate ood`: scores are energies, their order and its interval; the published energy's own order."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from gentk import data
from gentk.cli.app import app
from gentk.nets import energy, weights
from gentk.recipe.networks import EnergyConv
from gentk.recipe.schema import Data

DATA = os.environ.get("GENTK_DATA")
Write = Callable[[str, str], Path]
RECIPE = """\
task: evaluate
about: a test
size: smoke
samples: MODEL
reference: {name: digits}
split: test
method: {name: ood, against: [noisy, uniform, constant, mirrored, "data:digits:train"], n: 200}
"""


def write_energy(path: Path, *, levels: tuple[float, float] | None = None) -> Path:
    """The energy |x - c|^2 / (2 (10 sd)^2) of digits: its network is silent, so that every answer is known."""
    section = EnergyConv(name="energy-conv", width=4, multipliers=(1,))
    torch.manual_seed(0)
    net = energy.build(section, shape=(1, 8, 8), levels=levels)
    with torch.no_grad():
        for p in net.body.parameters():
            p.zero_()
    header = {
        "kind": "energy",
        "net": section.model_dump(mode="json"),
        "levels": None if levels is None else [levels[1], levels[0]],
        "data": {"name": "digits", "shape": [1, 8, 8], "classes": 0},
    }
    weights.save(path, net, header)
    return path


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["evaluate", "ood", *words])
    return result.exit_code, result.stdout, result.stderr


def test_scores_are_energies(tmp_path: Path, write: Write) -> None:
    """E = |x|^2 / 200 here: digits are mostly background of -1, so uniform noise has less energy than they."""
    model = write_energy(tmp_path / "e.safetensors")
    recipe = write("r.yaml", RECIPE.replace("MODEL", str(model)))
    code, out, err = run("--recipe", str(recipe), "--out", str(tmp_path / "run"), "--json")
    assert code == 0, err
    figures = json.loads(out)["metrics"]
    assert figures["energy_uniform"] == pytest.approx(64 / 3 / 200, rel=0.05)
    assert figures["auroc_uniform"] < 0.01, "the sign: what lies lower is no outlier"
    assert figures["auroc_mirrored"] == pytest.approx(0.5, abs=1e-3)
    inside, other = (data.load(Data(name="digits"), split).batch(torch.arange(200))[0] for split in ("test", "train"))
    by_hand = roc_auc_score([0] * 200 + [1] * 200, torch.cat([inside, other]).square().sum((1, 2, 3)).numpy())
    assert figures["auroc_digits_train"] == pytest.approx(by_hand, abs=1e-3)
    for name in ("noisy", "uniform", "constant", "mirrored"):
        low, area, high = (figures[f"auroc_{name}{end}"] for end in ("_low", "", "_high"))
        assert low <= area <= high
    assert (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "samples" / "energies.png").exists()
    again = run("--recipe", str(recipe), "--out", str(tmp_path / "run"), "--json")
    assert json.loads(again[1])["metrics"] == figures


def test_a_time_dependent_energy_is_read_at_its_level(tmp_path: Path, write: Write) -> None:
    """The tail's variance is 100 + t^2; noise of the level is added where that is asked for."""
    model = write_energy(tmp_path / "e.safetensors", levels=(0.1, 20.0))
    recipe = write("r.yaml", RECIPE.replace("MODEL", str(model)).replace("mirrored, ", ""))
    found = {}
    for name, sets in {
        "lowest": [],
        "ten": ["method.level=10.0"],
        "added": ["method.level=10.0", "method.added=true"],
    }.items():
        words = [w for s in sets for w in ("--set", s)]
        code, out, err = run("--recipe", str(recipe), "--out", str(tmp_path / name), "--json", *words)
        assert code == 0, err
        found[name] = json.loads(out)["metrics"]["energy_data"]
    assert found["ten"] == pytest.approx(found["lowest"] / 2, rel=1e-3)
    assert found["added"] == pytest.approx(found["ten"] + 64 * 100 / 400, rel=0.05)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("method.against=[upside-dawn]", "did you mean `upside-down`"),
        ("method.against=['data:digits']", "names no split"),
        ("method.level=0.5", "is a static energy"),
        ("method.added=true", "noise of which level"),
        ("reference.name=points:ring8", "takes"),
    ],
)
def test_bad_commands_are_said(tmp_path: Path, write: Write, sets: str, message: str) -> None:
    model = write_energy(tmp_path / "e.safetensors")
    recipe = write("r.yaml", RECIPE.replace("MODEL", str(model)))
    code, _, err = run("--recipe", str(recipe), "--out", str(tmp_path / "run"), "--set", sets)
    assert code == 2
    assert message in err


@pytest.mark.skipif(not DATA, reason="needs $GENTK_DATA with generative/, mnist/ and fashion_mnist/")
def test_the_published_energy_s_order(tmp_path: Path) -> None:
    """As measured on 1000 images each: Fashion-MNIST 0.987, upside-down digits 0.62, noise 1; ordered so in energy."""
    code, out, err = run("--json", "--out", str(tmp_path / "run"))
    assert code == 0, err
    figures = json.loads(out)["metrics"]
    assert figures["auroc_fashion_mnist_test"] == pytest.approx(0.987, abs=0.003)
    assert figures["auroc_upside_down"] == pytest.approx(0.622, abs=0.005)
    assert figures["auroc_noisy"] > 0.999
    names = ["data", "upside_down", "noisy", "fashion_mnist_test", "uniform"]
    energies = [figures[f"energy_{name}"] for name in names]
    assert energies == sorted(energies)
