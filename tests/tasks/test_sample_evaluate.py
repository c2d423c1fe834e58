"""`sample` and `evaluate` answer for the files as they are now, stop when asked, count calls and refuse the rest."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from gentk.cli.app import app
from gentk.engine import generative
from gentk.nets import weights
from gentk.processes import models
from gentk.processes.denoiser import Denoiser
from gentk.recipe.schema import Data
from gentk.tasks.sample import _drawing
from tests.conftest import DENOISER
from tests.tasks.toys import CPU, SIGMA_DATA, VE, build, write_teacher

POINTS = ("--set", "reference={name: 'points:ring8', points: 200}", "--set", "method.features=identity")
FEW = ("-n", 5, "--nfe", 5)


def gentk(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


def done(*words: object) -> Result:
    result = gentk(*words)
    assert result.exit_code == 0, result.stderr or result.exception
    return result


def refused(code: int, said: str, *words: object) -> None:
    result = gentk(*words)
    assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
    assert isinstance(result.exception, SystemExit)  # said by the command, not thrown through it
    assert said in result.stderr[result.stderr.index("error: ") :]


def info(folder: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((folder / "run.json").read_text())


def header(path: Path, **changes: object) -> Path:
    """The model file at `path` with another header."""
    model = models.load(str(path), kinds=("denoiser",), where=CPU)
    assert isinstance(model.net, Denoiser)
    weights.save(path, model.net.net, model.header | changes)
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- finished runs ----------------------------------------------------------------------------------------------------


def test_samples_of_a_model_that_has_changed_are_drawn_again(tmp_path: Path) -> None:
    path, out = tmp_path / "m.safetensors", tmp_path / "run"
    words = ("sample", "heun", "--model", path, *FEW, "--out", out)
    write_teacher(path, process=VE)
    done(*words)
    first = np.load(out / "samples.npz")["samples"]
    stamp = (out / "run.json").read_bytes()
    assert done(*words).stderr.count("made from another") == 0
    assert (out / "run.json").read_bytes() == stamp  # the same file: answered from the folder
    write_teacher(path, process=VE, seed=1)
    assert f"made from another {path}" in done(*words).stderr
    assert not np.array_equal(np.load(out / "samples.npz")["samples"], first)
    assert np.array_equal(np.load(tmp_path / "run.old-1" / "samples.npz")["samples"], first)
    assert info(out)["inputs"].keys() == {str(path)}


def test_another_recipe_is_refused_whatever_its_inputs(tmp_path: Path) -> None:
    one, two = (write_teacher(tmp_path / f"{k}.safetensors", process=VE, seed=k) for k in (1, 2))
    done("sample", "heun", "--model", one, *FEW, "--out", tmp_path / "run")
    refused(2, "another recipe", "sample", "heun", "--model", two, *FEW, "--out", tmp_path / "run")


@pytest.mark.parametrize("what", ["s.npz", "pictures", "m.safetensors"])
def test_samples_that_have_changed_are_measured_again(what: str, tmp_path: Path) -> None:
    path, out = tmp_path / what, tmp_path / "run"
    words = ["evaluate", "fd", "--samples", path, *POINTS, "--set", "method.n=20", "--out", out]
    if what == "pictures":
        words += ["--set", "reference={name: digits}"]

    def write(seed: int) -> None:
        gen = np.random.default_rng(seed)
        if what == "s.npz":
            np.savez(path, samples=gen.normal(size=(20, 2)).astype(np.float32))
        elif what == "m.safetensors":
            write_teacher(path, process=VE, seed=seed)
        else:
            path.mkdir(exist_ok=True)
            for k in range(12):
                pixels = gen.integers(0, 256, (8, 8), np.uint8)
                Image.fromarray(pixels).save(path / f"{k:02d}.png")

    write(0)
    done(*words)
    before = info(out)
    assert done(*words).exit_code == 0
    assert info(out) == before
    write(1)
    done(*words)
    assert info(out)["metrics"]["fd"] != before["metrics"]["fd"]


def test_features_that_have_changed_are_measured_again(tmp_path: Path) -> None:
    from gentk.recipe.store import assets

    features = tmp_path / "features.safetensors"
    features.write_bytes((assets() / "classifier-digits.safetensors").read_bytes())
    np.savez(tmp_path / "s.npz", samples=np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), np.uint8))
    words = ("evaluate", "fd", "--samples", tmp_path / "s.npz", "--set", f"method.features={features}")
    done(*words, "--out", tmp_path / "run")
    before = info(tmp_path / "run")["metrics"]["fd"]
    model = models.load(str(features), kinds=("classifier",), where=CPU)
    weights.save(features, _shrunk(model.net), model.header)
    done(*words, "--out", tmp_path / "run")
    assert info(tmp_path / "run")["metrics"]["fd"] != before


@torch.no_grad()
def _shrunk(net: nn.Module) -> nn.Module:
    for p in net.parameters():
        p.mul_(0.9)
    return net


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
@pytest.mark.parametrize("task", ["sample", "evaluate"])
def test_asked_to_stop(task: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 75 with nothing left as a result; the same command then does it all."""
    number, out = signal.Signals[name], tmp_path / "run"
    path = write_teacher(tmp_path / "m.safetensors", process=VE)
    words = {
        "sample": ("sample", "heun", "--model", path, *FEW, "--out", out),
        "evaluate": ("evaluate", "fd", "--samples", path, *POINTS, "--set", "method.n=20", "--out", out),
    }[task]
    module = _drawing if task == "sample" else generative
    drawn: Callable[..., torch.Tensor] = module.draw

    def interrupted(*args: object, **own: object) -> torch.Tensor:
        part = drawn(*args, **own)
        os.kill(os.getpid(), number)
        return part

    monkeypatch.setattr(module, "draw", interrupted)
    before = signal.signal(number, signal.SIG_IGN)  # unheard, the signal must not end the tests
    try:
        result = gentk(*words)
    finally:
        signal.signal(number, before)
    assert result.exit_code == 75, (result.stderr, result.exception)
    assert f"stopped by {name}" in result.stderr
    assert info(out)["status"] == "stopped"
    assert info(out)["metrics"] == {}
    assert not (out / "samples.npz").exists()
    monkeypatch.setattr(module, "draw", drawn)
    done(*words)
    assert info(out)["status"] == "done"


# --- guidance and labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("guidance", "nfe"), [(0, 5), (1, 5), (2.5, 10)])
def test_nfe_counts_the_calls_of_the_network(
    guidance: float, nfe: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_teacher(tmp_path / "m.safetensors", process=VE, classes=3)
    seen, forward = [], Denoiser.forward
    monkeypatch.setattr(Denoiser, "forward", lambda self, *args: (seen.append(len(args[0])), forward(self, *args))[1])
    words = ("sample", "heun", "--model", path, *FEW, "--set", f"guidance={guidance}", "--out", tmp_path / "run")
    assert f", {nfe} NFE each" in done(*words, "--dry-run").stdout
    done(*words)
    assert info(tmp_path / "run")["metrics"]["nfe"] == nfe == sum(seen) / 5


def test_guidance_is_refused_where_it_was_never_learned(tmp_path: Path) -> None:
    path = write_teacher(tmp_path / "m.safetensors", process=VE, classes=3)
    guided = ("--set", "guidance=2", "--out", tmp_path / "run", "--dry-run")
    done("sample", "heun", "--model", path, *guided)  # a header that does not say
    done("sample", "heun", "--model", header(path, label_dropout=0.1), *guided)
    refused(2, "has always seen its labels", "sample", "heun", "--model", header(path, label_dropout=0.0), *guided)
    header(path, kind="generator", sigma_init=2.5)
    refused(2, "is a generator", "sample", "one-step", "--model", path, *guided)
    done("sample", "one-step", "--model", path, "--dry-run")


def test_no_labels_are_refused(tmp_path: Path) -> None:
    path = write_teacher(tmp_path / "m.safetensors", process=VE, classes=3)
    words = ("sample", "heun", "--model", path, "--dry-run", "--set")
    refused(2, "labels: must be a list of at least 1 value, not `[]`", *words, "labels=[]")
    for labels in ("[1]", "null"):
        done(*words, f"labels={labels}")


# --- files ------------------------------------------------------------------------------------------------------------


def damaged(path: Path, damage: str) -> None:
    np.savez(path, samples=np.zeros((20, 2), np.float32))
    whole = path.read_bytes()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "flipped":
            path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        case "text":
            np.savez(path, samples=np.array(["a", "b"]))
        case "objects":
            np.savez(path, samples=np.array([{}, None], dtype=object))
        case "npy":
            with path.open("wb") as f:
                np.save(f, np.zeros((20, 2), np.float32))
        case "no samples":
            np.savez(path, other=np.zeros((20, 2), np.float32))
        case "none":
            np.savez(path, samples=np.zeros((0, 2), np.float32))
        case "words":
            path.write_text("version https://git-lfs.github.com/spec/v1\n")


DAMAGES = ["empty", "truncated", "flipped", "text", "objects", "npy", "no samples", "none", "words"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_npz_is_named(damage: str, tmp_path: Path) -> None:
    damaged(tmp_path / "s.npz", damage)
    refused(1, "s.npz: ", "evaluate", "fd", "--samples", tmp_path / "s.npz", *POINTS, "--out", tmp_path / "run")


def test_a_sample_run_without_npz(tmp_path: Path) -> None:
    path = write_teacher(tmp_path / "m.safetensors", process=VE)
    done("sample", "heun", "--model", path, *FEW, "--set", "save=[grid]", "--out", tmp_path / "s")
    refused(3, "without samples.npz", "evaluate", "fd", "--samples", tmp_path / "s", *POINTS, "--out", tmp_path / "e")


# --- what a model knows of its data -----------------------------------------------------------------------------------


def test_the_data_section_goes_from_recipe_to_denoiser_to_generator(tmp_path: Path) -> None:
    """With `reference: null` a student is measured against the teacher's 400 points, not the default 20 000."""
    (tmp_path / "r.yaml").write_text(DENOISER)
    done("train", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "t")
    teacher = models.load(str(tmp_path / "t"), kinds=("denoiser",), where=CPU)
    assert teacher.header["label_dropout"] == 0.1
    assert teacher.data == Data(name="points:ring8", points=400)
    measure = {"features": "identity", "n": 64, "steps": 3, "batch": 64}
    method = build({"name": "sim"}, teacher=str(tmp_path / "t"), measure=measure)
    assert method.judge is not None
    assert len(method.judge.train) == 400
    export = method.finish({"generator": method.nets["generator"]}).exports["generator"]
    weights.save(tmp_path / "g.safetensors", export.net, export.header)
    assert models.load(str(tmp_path / "g.safetensors"), kinds=("generator",), where=CPU).data == teacher.data


def test_a_header_without_the_section_names_the_data_alone(tmp_path: Path) -> None:
    path = write_teacher(tmp_path / "m.safetensors", process=VE)
    model = models.load(str(path), kinds=("denoiser",), where=CPU)
    assert model.data == Data(name="points:ring8")
    assert model.header["sigma_data"] == SIGMA_DATA


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("distill", "sim", "--set", "method.noise_generator={name: karras, sigma_min: 90}"), "90 is not below"),
        (("train", "denoiser", "--set", "method.process={name: ve, sigma_max: 0.001}"), "is not below sigma_max"),
        (("distill", "sim", "--set", "method.distance=smooth-l1", "--set", "method.c=0"), "has a wrong gradient"),
        (("distill", "sim", "--set", "method.noise_generator={name: karras, rho: 0.5}"), "rho: must be at least 1"),
        (("sample", "heun", "--set", "grid.rho=0.5"), "rho: must be at least 1"),
        (("sample", "euler", "--set", "grid.rho=0.5"), "rho: must be at least 1"),
    ],
)
def test_settings_that_cannot_work(words: tuple[str, ...], said: str) -> None:
    refused(2, said, *words, "--dry-run")


def test_settings_at_their_bounds_work() -> None:
    done("distill", "sim", "--set", "method.distance=smooth-l1", "--set", "method.c=0.1", "--dry-run")
    done("distill", "sim", "--set", "method.distance=l2", "--set", "method.c=0", "--dry-run")
    done("sample", "heun", "--set", "grid.rho=1.0", "--dry-run")
