"""`gentk doctor` tells what is broken from what is merely absent, with a remedy for either."""

import json
import os
import shutil
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import typer
from safetensors.numpy import save_file
from typer.testing import CliRunner

from gentk.cli import doctor
from gentk.recipe import stamp, store

REQUIRES = [
    "numpy>=2.0",
    "torch>=2.7",
    "tensorboard>=2.18; extra == 'track'",
    'wandb-of-nowhere>=1; extra == "track"',
    "gentk[track]; extra == 'all'",
]


@pytest.fixture(autouse=True)
def healthy(tmp_path, monkeypatch):
    """A machine on which nothing is broken, whatever this one is like."""
    assets = tmp_path / "assets"
    assets.mkdir()
    save_file({"a": np.zeros(3)}, assets / "edm-digits.safetensors", metadata=stamp.write_header({"kind": "denoiser"}))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(store, "assets", lambda: assets)
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)
    monkeypatch.setattr(metadata, "version", lambda name: installed(name))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 2**40))
    monkeypatch.delenv("GENTK_DATA", raising=False)
    return assets


Usage = namedtuple("Usage", "total used free")


def installed(name):
    if "nowhere" in name:
        raise metadata.PackageNotFoundError(name)
    return "1.0"


def call(*words):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(doctor.doctor)
    return CliRunner().invoke(app, words)


def checks(code=0):
    """The answer by name, after a look at the exit code."""
    result = call("--json")
    answer = json.loads(result.stdout)
    assert result.exit_code == code
    assert answer["ok"] == (code == 0)
    found = {each["check"]: each for each in answer["checks"]}
    assert all(each["remedy"] for each in found.values() if each["state"] == "broken")
    assert len(found) == len(answer["checks"])
    return found


def test_a_healthy_machine():
    found = checks()
    assert {
        "python",
        "platform",
        "gentk",
        "torch",
        "bf16",
        "compiler",
        "packages",
        "GENTK_DATA",
        "models",
        "here",
    } <= set(found)
    assert found["models"]["found"] == "edm-digits"
    assert "threads" in found["torch"]["found"]


def test_the_table_has_the_same_checks():
    result = call()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["state", "check", "found", "remedy"]
    assert len(lines) == 1 + len(checks())


def test_extras_are_those_of_the_package():
    found = checks()
    extra = found["extra track"]
    assert (extra["state"], extra["found"], extra["remedy"]) == (
        "absent",
        "missing: wandb-of-nowhere",
        "pip install gentk[track]",
    )
    assert found["packages"]["found"] == "numpy, torch"
    assert "extra all" not in found


def test_a_core_package_that_is_missing_is_broken(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy-of-nowhere>=2"])
    assert checks(code=1)["packages"]["state"] == "broken"


def test_a_checkout_that_is_not_installed_is_not_broken(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    assert checks()["packages"]["remedy"] == "pip install -e ."


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = checks(code=1)
    assert found["torch"]["state"] == "broken"
    assert "bf16" not in found


def test_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = checks()["compiler"]
    assert found["state"] == "absent"
    assert "g++" in found["remedy"]
    monkeypatch.setenv("CXX", "my-compiler")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert checks()["compiler"]["found"] == "/bin/my-compiler"


def test_data(tmp_path, monkeypatch):
    assert checks()["GENTK_DATA"]["state"] == "absent"
    monkeypatch.setenv("GENTK_DATA", str(tmp_path / "mistyped"))
    assert checks(code=1)["GENTK_DATA"]["state"] == "broken"
    (tmp_path / "mistyped").mkdir()
    assert "no data set found" in checks()["GENTK_DATA"]["found"]
    (tmp_path / "mistyped" / "fashion_mnist").mkdir()
    (tmp_path / "mistyped" / "cifar-10-batches-py").mkdir()
    assert checks()["GENTK_DATA"]["found"].endswith(": fashion-mnist, cifar10")


DATA = os.environ.get("GENTK_DATA")


@pytest.mark.skipif(not DATA, reason="GENTK_DATA is not set: no real data to find")
def test_what_is_called_found_can_be_loaded(monkeypatch):
    from gentk.data import load
    from gentk.recipe.schema import Data

    monkeypatch.setenv("GENTK_DATA", str(DATA))
    names = checks()["GENTK_DATA"]["found"].rpartition(": ")[2].split(", ")
    assert names
    for name in names:
        assert len(load(Data(name=name), "test")) == 10_000


def test_models(healthy):
    path = healthy / "edm-digits.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in checks(code=1)["models"]["found"]
    path.unlink()
    assert checks(code=1)["models"]["state"] == "broken"


def test_a_disk_that_is_nearly_full_is_broken(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 2**29))
    found = checks(code=1)["here"]
    assert "0.5 GiB free" in found["found"]
    assert "--out" in found["remedy"]


def test_a_folder_that_cannot_be_written_is_broken(monkeypatch):
    folder = Path("gone")
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path.cwd().rmdir()
    assert checks(code=1)["here"]["found"].startswith("cannot write: ")
