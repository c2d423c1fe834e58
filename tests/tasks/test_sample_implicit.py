"""`sample implicit`: draws by one call, the same in any batch, and corrections that leave the target as it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gentk.cli.app import app
from gentk.nets import weights
from gentk.nets.implicit import Sampler, load
from gentk.recipe.networks import Plain
from gentk.recipe.targets import Target

NET = Plain(name="plain", width=8, depth=2)


def sampler(folder: Path, target: Target, *, dim: int = 2, wide: float = 1.0, root: torch.Tensor | None = None) -> str:
    """A file of a sampler whose draws are N(0, wide^2 I) in y."""
    net = Sampler(NET, dim=dim, middle=torch.zeros(dim), root=wide * torch.ones(dim) if root is None else root)
    header = {
        "kind": "sampler",
        "net": NET.model_dump(mode="json"),
        "data": {"name": target.name, "shape": [dim], "classes": 0},
        "target": target.model_dump(mode="json"),
        "whitened": root is not None,
    }
    path = folder / "sampler.safetensors"
    weights.save(path, net, header)
    return str(path)


def draw(
    out: Path, model: str, *words: str, method: str = "implicit", n: int = 400
) -> tuple[np.ndarray, dict[str, float]]:
    command = ["sample", method, "--model", model, "-n", str(n), "--out", str(out), "--quiet", "--json", *words]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    with np.load(out / "samples.npz") as file:
        return file["samples"], json.loads(done.stdout)["metrics"]


def test_draws_are_the_same_in_any_batch_and_by_either_name(tmp_path: Path) -> None:
    model = sampler(tmp_path, Target(name="normal"), wide=2.0)
    whole, figures = draw(tmp_path / "a", model)
    parts, _ = draw(tmp_path / "b", model, "--set", "batch=64")
    np.testing.assert_allclose(whole, parts, rtol=1e-6)
    same, _ = draw(tmp_path / "c", model, method="one-step")
    np.testing.assert_array_equal(whole, same)
    later, _ = draw(tmp_path / "d", model, "--set", "first=100", n=50)
    np.testing.assert_allclose(whole[100:150], later, rtol=1e-6)
    assert whole.std(0) == pytest.approx([2, 2], rel=0.15)
    assert figures["nfe"] == 1
    assert (tmp_path / "a" / "samples" / "grid.png").exists()


@pytest.mark.parametrize("by", ["mala", "hmc"])
def test_stage_two_mends_a_width_and_tells_acceptance(tmp_path: Path, by: str) -> None:
    model = sampler(tmp_path, Target(name="normal"), wide=1.5)
    raw, _ = draw(tmp_path / "raw", model)
    mended, figures = draw(tmp_path / by, model, "--set", f"method.correct={by}", "--set", "method.transitions=20")
    assert raw.std() == pytest.approx(1.5, rel=0.1)
    assert mended.std() == pytest.approx(1.0, rel=0.1)
    assert 0.4 < figures["acceptance"] < 0.95
    assert figures["log_q_after"] > figures["log_q_before"]
    assert figures["moved"] > 0.3


def test_parameters_come_out_in_their_own_support(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_gamma.py").write_text("def log_q(x): return (2 * x.log() - x).sum(1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    target = Target(name="my_gamma:log_q", dim=3, map=("positive", "positive", "positive"))
    model = sampler(tmp_path, target, dim=3)
    x, _ = draw(tmp_path / "x", model)
    assert x.shape == (400, 3)
    assert (x > 0).all()
    assert not (tmp_path / "x" / "samples" / "grid.png").exists()


def test_whitened_samplers_are_read_back(tmp_path: Path) -> None:
    root = torch.tensor([[1.0, 0.0], [2.0, 0.5]])
    model = sampler(tmp_path, Target(name="normal"), root=root)
    x, _ = draw(tmp_path / "x", model, n=4000)
    np.testing.assert_allclose(np.cov(x.T), (root @ root.T).numpy(), rtol=0.15)
    assert torch.equal(load(model).net.root, root)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nfe", "5"], "makes one evaluation"),
        (["--set", "labels=[1]"], "means nothing to a sampler"),
        (["--set", "save=[png]"], "no PNG form"),
    ],
)
def test_settings_of_other_models_are_refused(tmp_path: Path, words: list[str], said: str) -> None:
    model = sampler(tmp_path, Target(name="normal"))
    done = CliRunner().invoke(app, ["sample", "implicit", "--model", model, "--out", str(tmp_path / "x"), *words])
    assert done.exit_code == 2
    assert said in done.stderr


def test_other_models_are_no_samplers(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["sample", "implicit", "--model", "sim-digits", "--out", str(tmp_path / "x")])
    assert done.exit_code == 2
    assert "`sim-digits` is a generator" in done.stderr
