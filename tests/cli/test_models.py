"""`gentk models` reads headers only, and a damaged file hides no other."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from gentk.cli import models
from gentk.recipe import pipelines, stamp, store, teachers

HEADER = {
    "kind": "denoiser",
    "net": {"name": "mlp", "width": 64, "blocks": 2},
    "process": {"name": "ve", "sigma_min": 0.002, "sigma_max": 80.0},
    "predicts": "edm",
    "sigma_data": 0.5,
    "data": {"name": "digits", "shape": [1, 8, 8]},
    "licence": "Apache-2.0",
    "recipe": "task: train\nseed: 3\n",
    "seed": 3,
    "metrics": {"fd": 1.23456, "nfe": 35},
}


def model(path, header=HEADER):
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"a": np.zeros((10, 30), np.float32), "b": np.zeros(7, np.float32)}
    save_file(tensors, path, metadata=stamp.write_header(header))
    return path


@pytest.fixture(autouse=True)
def shipped(tmp_path, monkeypatch):
    """A package that ships what the test puts in the folder, and knows of one published model; nothing is imported."""
    folder = tmp_path / "assets"
    folder.mkdir()
    monkeypatch.setenv("GENTK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(teachers, "TEACHERS", (teachers.BY_NAME["edm-cifar10"],))
    monkeypatch.setattr(pipelines, "PIPELINES", ())
    monkeypatch.setattr(store, "assets", lambda: folder)
    return folder


def call(*words, code=0):
    result = CliRunner().invoke(models.app, words)
    assert result.exit_code == code, result.output
    return result


def test_list(shipped):
    model(shipped / "edm-digits.safetensors")
    head, line, _ = call("list").stdout.splitlines()
    assert head.split() == ["model", "kind", "net", "data", "parameters", "size", "licence", "where"]
    size = (shipped / "edm-digits.safetensors").stat().st_size
    assert line.split() == [
        "edm-digits",
        "denoiser",
        "mlp",
        "digits",
        "307",
        *f"{size / 1000:.3g} kB".split(),
        "Apache-2.0",
        "shipped",
    ]
    answer, _ = json.loads(call("list", "--json").stdout)
    assert answer["where"] == "shipped"
    assert answer["model"] == "edm-digits"
    assert answer["parameters"] == 307
    assert answer["net"]["width"] == 64


def test_list_of_text_to_image_models(tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "PIPELINES", (pipelines.BY_NAME["pixart-alpha"],))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    last = call("list").stdout.splitlines()[-1]
    assert last.startswith("pixart-alpha ")
    assert last.endswith("gentk sample euler --model pixart-alpha --prompt TEXT")
    assert json.loads(call("list", "--json").stdout)[-1]["where"] == "absent"
    place = tmp_path / "hub" / "models--PixArt-alpha--PixArt-XL-2-512x512" / "snapshots" / "abc"
    place.mkdir(parents=True)
    (place / pipelines.INDEX).write_text("{}")
    answer = json.loads(call("list", "--json").stdout)[-1]
    assert (answer["where"], answer["path"]) == ("hub cache", str(place))


def test_list_of_nothing():
    result = call("list")
    _, line = result.stdout.splitlines()
    assert line.split() == ["edm-cifar10", "denoiser", "-", "cifar10", "-", "-", *LICENCE, *BRING]
    (answer,) = json.loads(call("list", "--json").stdout)
    assert (answer["where"], answer["path"], answer["import"]) == ("absent", None, "gentk models import edm-cifar10")
    assert answer["source"].startswith("https://")


LICENCE = ["CC", "BY-NC-SA", "4.0", "(NVIDIA,", "non-commercial)"]
BRING = ["gentk", "models", "import", "edm-cifar10"]


def test_list_of_imported_models(shipped):
    model(store.imported_place("edm-cifar10"), HEADER | {"source": "https://x/y.pkl", "sha256": "ab" * 32})
    model(shipped / "mine.safetensors")
    model(store.imported_place("mine"))  # a shipped name goes first
    lines = call("list").stdout.splitlines()[1:]
    assert [(line.split()[0], line.split()[-1]) for line in lines] == [("mine", "shipped"), ("edm-cifar10", "imported")]
    shown = call("show", "edm-cifar10").stdout.splitlines()
    assert f"sha256         {'ab' * 32}" in shown
    assert "source         https://x/y.pkl" in shown
    assert any(line.split() == ["licence", "Apache-2.0"] for line in shown)


def test_a_published_model_that_no_command_brings(monkeypatch):
    monkeypatch.setattr(teachers, "TEACHERS", (teachers.BY_NAME["rectified-flow-cifar10"],))
    assert "absent: see https://github.com/" in call("list").stdout
    (answer,) = json.loads(call("list", "--json").stdout)
    assert answer["import"] is None


def test_a_published_model_that_is_absent_is_told_with_its_command():
    said = call("show", "edm-cifar10", code=3).stderr
    assert "teacher `edm-cifar10` is not here" in said
    assert "with a network: `gentk models import edm-cifar10`" in said


def test_a_damaged_model_hides_no_other(shipped):
    model(shipped / "good.safetensors")
    bad = model(shipped / "bad.safetensors")
    bad.write_bytes(bad.read_bytes()[:-1])
    result = call("list")
    assert len(result.stdout.splitlines()) == 3
    assert "good" in result.stdout
    assert f"warning: {bad}: " in result.stderr
    answer = json.loads(call("list", "--json").stdout)
    assert ["error" in each for each in answer] == [True, False, False]


def test_show_tells_recipe_seed_and_figures(shipped):
    model(shipped / "edm-digits.safetensors")
    lines = call("show", "edm-digits").stdout.splitlines()
    assert "seed           3" in lines
    assert any(line.startswith("net ") and "width: 64" in line for line in lines)
    assert [line.split() for line in lines if line.startswith(("fd", "nfe"))] == [["fd", "1.235"], ["nfe", "35"]]
    assert lines[-2:] == ["task: train", "seed: 3"]


def test_show_a_file_and_a_run_folder(tmp_path):
    path = model(
        tmp_path / "run" / "export" / "generator.safetensors", HEADER | {"kind": "generator", "sigma_init": 2.5}
    )
    for ref in (path, tmp_path / "run"):
        answer = json.loads(call("show", str(ref), "--json").stdout)
        assert answer["path"] == str(path)
        assert answer["kind"] == "generator"
        assert answer["sigma_init"] == 2.5


def test_show_a_bare_header(tmp_path):
    text = call("show", str(model(tmp_path / "m.safetensors", {"kind": "classifier"}))).stdout
    assert "classifier" in text
    assert "None" not in text


def test_unknown_model_gets_a_suggestion(shipped):
    model(shipped / "edm-digits.safetensors")
    assert "did you mean `edm-digits`?" in call("show", "edm-digit", code=3).stderr


def test_foreign_and_damaged_files_are_named(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3)}, path)
    assert call("show", str(path), code=1).stderr.startswith(f"error: {path}: ")
    path.write_bytes(b"not a model")
    assert call("show", str(path), code=1).stderr.startswith(f"error: {path}: ")


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (12_345, "12.3 kB"), (1_440_000, "1.44 MB"), (2 * 10**9, "2 GB")]
)
def test_sizes(count, text):
    assert models._size(count) == text
