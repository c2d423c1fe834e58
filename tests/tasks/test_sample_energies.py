"""`sample` on energies: chains by mala, ula and hmc, annealed Langevin, denoising; what does not fit is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gentk.cli.app import app
from gentk.data import to_uint8
from gentk.engine import rng
from gentk.nets import energy, weights
from gentk.recipe.networks import EnergyConv, EnergyMlp, EnergyUNet
from tests.tasks.toys import energy_header, write_teacher


def write_energy(path: Path, section: Any, shape: tuple[int, ...], levels: tuple[float, float] | None = None) -> Path:
    """An energy with a silent network: N(c, (10 sd)^2 + t^2) by its tail, c = (1, -2), sd 0.1; or a fresh U-Net's."""
    torch.manual_seed(0)
    net = energy.build(section, shape=shape, levels=levels)
    with torch.no_grad():
        if not isinstance(section, EnergyUNet):
            for p in net.body.parameters():
                p.zero_()
            net.sd.fill_(0.1)
        if len(shape) == 1:
            net.centre.copy_(torch.tensor([1.0, -2.0]))
    weights.save(path, net, energy_header(section, shape, levels))
    return path


MLP = EnergyMlp(name="energy-mlp", width=4, depth=1, waves=2)
UNET = EnergyUNet(name="energy-unet", width=8, multipliers=(1,))


def sample(method: str, *words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["sample", method, *words])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("method", "sets"),
    [
        ("mala", ("method.start=10.0", "method.step_size=0.8")),
        ("hmc", ("method.start=10.0", "method.step_size=0.3")),
        ("ula", ("method.start=10.0", "method.step_size=0.2")),
    ],
)
def test_chains_on_an_energy(tmp_path: Path, method: str, sets: tuple[str, ...]) -> None:
    """N((1, -2), 1): mean and variance of 4000 draws of 400 chains, within 5 errors and ULA's bias of 5 %."""
    model = write_energy(tmp_path / "e.safetensors", MLP, (2,))
    words = [w for s in (*sets, "method.chains=400", "method.warmup=60", "method.thin=4") for w in ("--set", s)]
    out = tmp_path / "run"
    code, answer, err = sample(method, "--model", str(model), "-n", "4000", "--out", str(out), "--json", *words)
    assert code == 0, err
    x = np.load(out / "samples.npz")["samples"]
    assert x.shape == (4000, 2)
    assert np.allclose(x.mean(0), [1, -2], atol=0.15)
    assert x.var(0).mean() == pytest.approx(1.0, rel=0.15)
    assert json.loads(answer)["metrics"]["n"] == 4000


def test_chains_of_images(tmp_path: Path) -> None:
    section = EnergyConv(name="energy-conv", width=4, multipliers=(1,))
    model = write_energy(tmp_path / "e.safetensors", section, (1, 8, 8), (0.1, 2.0))
    words = [w for s in ("method.chains=5", "method.warmup=3", "method.thin=1") for w in ("--set", s)]
    code, _, err = sample("mala", "--model", str(model), "-n", "10", "--out", str(tmp_path / "run"), *words)
    assert code == 0, err
    assert np.load(tmp_path / "run" / "samples.npz")["samples"].shape == (10, 1, 8, 8)
    assert (tmp_path / "run" / "samples" / "grid.png").exists()


def test_annealed_langevin_is_the_same_in_any_batch(tmp_path: Path) -> None:
    """On N(c, 1 + t^2) samples end near N(c, 1); sample k is the same in any batch."""
    model = write_energy(tmp_path / "e.safetensors", MLP, (2,), (0.05, 3.0))
    found = []
    for name, words in {"a": ["--seeds", "0-299"], "b": ["--seeds", "100-139", "--set", "batch=30"]}.items():
        code, answer, err = sample(
            "annealed-langevin", "--model", str(model), "--out", str(tmp_path / name), "--json", *words
        )
        assert code == 0, err
        found.append(np.load(tmp_path / name / "samples.npz")["samples"])
        assert json.loads(answer)["metrics"]["nfe"] == 151
    np.testing.assert_allclose(found[0][100:140], found[1], rtol=1e-4, atol=1e-5)
    assert np.allclose(found[0].mean(0), [1, -2], atol=5 / math.sqrt(300) + 0.05)
    assert found[0].var(0).mean() == pytest.approx(1.0, rel=0.3)


@pytest.mark.parametrize("by", ["mean", "mode"])
def test_denoising_is_the_gaussian_s(tmp_path: Path, by: str) -> None:
    """A fresh U-Net energy is N(0, 1 + t^2), so E[x|y] = y / (1 + sigma^2): the PSNR by hand, and images to pair."""
    model = write_energy(tmp_path / "e.safetensors", UNET, (1, 8, 8), (0.05, 3.0))
    out = tmp_path / "run"
    words = ["--set", "method.data.name=digits", "--set", f"method.by={by}", "--set", "method.sigma=0.8", "-n", "50"]
    code, answer, err = sample("denoise", "--model", str(model), "--out", str(out), "--json", *words)
    assert code == 0, err
    figures = json.loads(answer)["metrics"]
    from gentk import data
    from gentk.metrics.denoising import mean_psnr
    from gentk.recipe.schema import Data

    clean = data.load(Data(name="digits"), "test").batch(torch.arange(50))[0]
    y = clean + 0.8 * rng.noise(0, 0, 50, (1, 8, 8), purpose="denoise")
    # the mode of the energy at its smallest level, of variance 1 + 0.05^2
    gain = 1 / (1 + 0.64) if by == "mean" else 1.0025 / (1.0025 + 0.64)
    assert figures["psnr"] == pytest.approx(mean_psnr(gain * y, clean), abs=0.02)
    assert figures["psnr_noisy"] == pytest.approx(mean_psnr(y, clean), abs=1e-6)
    assert (out / "samples" / "denoised.png").exists()
    assert np.load(out / "samples.npz")["samples"].shape == (50, 1, 8, 8)


@pytest.mark.parametrize(
    ("method", "levels", "words", "message"),
    [
        ("annealed-langevin", None, (), "has no noise levels"),
        ("annealed-langevin", (0.1, 2.0), ("--nfe", "5"), "nfe: means nothing"),
        ("mala", (0.1, 2.0), ("--nfe", "5"), "nfe: means nothing"),
        ("denoise", None, ("--set", "method.data.name=digits"), "has no noise levels"),
        ("denoise", (0.1, 2.0), ("--set", "method.data.name=points:ring8"), "samples of shape"),
        ("denoise", (0.1, 2.0), ("--set", "method.sigma=9.0"), "9 is outside the energy's"),
        ("denoise", (0.1, 2.0), ("-n", "100000"), "are asked for, there are"),
        ("heun", None, (), "is a static energy"),
        ("one-step", (0.1, 2.0), (), "is a denoiser, `one-step` samples a generator"),
    ],
)
def test_what_does_not_fit_is_said(
    tmp_path: Path, method: str, levels: Any, words: tuple[str, ...], message: str
) -> None:
    section = EnergyConv(name="energy-conv", width=4, multipliers=(1,))
    model = write_energy(tmp_path / "e.safetensors", section, (1, 8, 8), levels)
    code, _, err = sample(method, "--model", str(model), "--out", str(tmp_path / "run"), *words)
    assert code == 2, err
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_denoiser_is_no_energy(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "t.safetensors", process={"name": "ve"})
    code, _, err = sample("mala", "--model", str(teacher), "--out", str(tmp_path / "run"))
    assert code == 2
    assert "is not a density but a denoiser" in err
    code, _, err = sample("annealed-langevin", "--model", str(teacher), "--out", str(tmp_path / "run"))
    assert code == 2
    code, _, err = sample("annealed-langevin", "--model", "targets:banana", "--out", str(tmp_path / "run"))
    assert code == 2
    assert "gentk sample hmc" in err


def test_a_dry_run_draws_nothing(tmp_path: Path) -> None:
    model = write_energy(tmp_path / "e.safetensors", MLP, (2,), (0.05, 3.0))
    out = tmp_path / "run"
    code, answer, err = sample("annealed-langevin", "--model", str(model), "-n", "5", "--out", str(out), "--dry-run")
    assert code == 0, err
    assert "5 chains of 150 transitions" in answer
    assert not out.exists()


def test_an_energy_is_sampled_as_the_denoiser_that_it_is(tmp_path: Path) -> None:
    """Heun on a fresh U-Net's energy, N(0, I): noise of the top level T flows to z T / sqrt(1 + T^2), in any batch."""
    path = write_energy(tmp_path / "e.safetensors", UNET, (1, 8, 8), (0.03, 3.0))
    drawn = []
    for batch in ("5", "2"):
        out = tmp_path / batch
        words = (
            "--model",
            str(path),
            "-n",
            "5",
            "--nfe",
            "119",
            "--out",
            str(out),
            "--quiet",
            "--set",
            f"batch={batch}",
        )
        code, _, err = sample("heun", *words)
        assert code == 0, err
        drawn.append(np.load(out / "samples.npz")["samples"])
    z = rng.noise(0, 0, 5, (1, 8, 8), purpose="start")
    exact, wrong = (to_uint8(scale * z).numpy().astype(float) for scale in (3 / math.sqrt(10), 1.0))
    np.testing.assert_allclose(drawn[0], exact, atol=1.01)  # 60 steps of second order, to a byte
    assert np.abs(drawn[0] - wrong).max() > 3
    np.testing.assert_array_equal(*drawn)
