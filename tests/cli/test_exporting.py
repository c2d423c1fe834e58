"""`gentk models export` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from typer.testing import CliRunner, Result

from gentk.cli.app import app
from gentk.engine.draw import labels, starts
from gentk.recipe import store


def gentk(*words: object) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words])


def test_the_answer_is_the_path_or_one_object(tmp_path: Path) -> None:
    done = gentk("models", "export", "sim-digits", "--to", "safetensors", "--out", tmp_path / "g.safetensors")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'g.safetensors'}\n"
    assert "differs by 0 at most" in done.stderr
    done = gentk("models", "export", "sim-digits", "--to", "torch-export", "--out", tmp_path / "g.pt2", "--json")
    answer = json.loads(done.stdout)
    assert answer.keys() == {"model", "path", "format", "bytes", "difference", "tolerance"}
    assert answer["bytes"] == (tmp_path / "g.pt2").stat().st_size
    assert answer["format"] == "torch-export"
    assert 0 <= answer["difference"] <= answer["tolerance"] == 1e-6


def test_the_program_makes_what_gentk_sample_makes(tmp_path: Path) -> None:
    """From the same noise and labels: the digits of `gentk sample one-step`, bit for bit in bytes."""
    run = tmp_path / "run"
    done = gentk("sample", "one-step", "-n", 20, "--seed", 3, "--out", run, "--set", "save=[npz]", "--quiet")
    assert done.exit_code == 0, done.stderr
    with np.load(run / "samples.npz") as file:
        wanted = file[next(k for k in file.files if file[k].ndim == 4)]
    gentk("models", "export", "sim-digits", "--to", "torch-export", "--out", tmp_path / "g.pt2")
    call = torch.export.load(tmp_path / "g.pt2").module()
    found = call(starts(3, 0, 20, (1, 8, 8)), labels(0, 20, tuple(range(10))))
    found = ((found + 1) * 127.5).round()
    assert found.shape == (20, 1, 8, 8)
    wanted = torch.from_numpy(wanted).movedim(-1, 1).float() if wanted.shape[-1] == 1 else torch.from_numpy(wanted)
    assert float((found - wanted).abs().max()) <= 1  # a byte, where rounding falls on either side of a half
    assert float((found != wanted).float().mean()) < 0.01


def test_a_float16_export_is_sampled(tmp_path: Path) -> None:
    """Weights of two bytes, arithmetic of four: samples move by less than a grey level."""
    small = tmp_path / "g.safetensors"
    done = gentk("models", "export", "sim-digits", "--to", "safetensors", "--dtype", "float16", "--out", small)
    assert done.exit_code == 0, done.stderr
    assert small.stat().st_size < 0.55 * store.model_path("sim-digits").stat().st_size
    shown = json.loads(gentk("models", "show", small, "--json").stdout)
    assert shown["dtype"] == "float16"
    samples = []
    for k, model in enumerate(("sim-digits", small)):
        run = tmp_path / f"run-{k}"
        done = gentk("sample", "one-step", "--model", model, "-n", 20, "--out", run, "--set", "save=[npz]", "--quiet")
        assert done.exit_code == 0, done.stderr
        with np.load(run / "samples.npz") as file:
            samples.append(file[next(n for n in file.files if file[n].ndim == 4)].astype(int))
    assert 0 <= np.abs(samples[0] - samples[1]).max() <= 1


def test_faults_end_with_their_code(tmp_path: Path) -> None:
    out = tmp_path / "g.onnx"
    out.write_text("mine")
    for code, words, said in [
        (2, ("sim-digits", "--to", "onxn", "--out", out), "did you mean `onnx`?"),
        (2, ("sim-digits", "--to", "onnx", "--out", out), "exists"),
        (2, ("classifier-digits", "--to", "onnx", "--out", out, "--force"), "is a classifier"),
        (
            2,
            ("edm-digits", "--to", "diffusers", "--out", tmp_path / "d"),
            "hint: these work: safetensors, torch-export",
        ),
        (3, ("sim-digit", "--to", "onnx", "--out", tmp_path / "h.onnx"), "did you mean `sim-digits`?"),
    ]:
        done = gentk("models", "export", *words)
        assert done.exit_code == code, (done.stderr, done.exception)
        assert said in done.stderr
        assert done.stdout == ""
    assert out.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["g.onnx"]
