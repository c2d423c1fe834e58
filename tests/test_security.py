"""Nothing that gentk reads can run code or write elsewhere, and nothing that it writes or sends holds a secret."""

from __future__ import annotations

import ast
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gentk.cli import importing
from gentk.cli.app import app
from gentk.errors import RecipeError
from gentk.recipe import yaml12
from tests.conftest import DENOISER

PACKAGE = Path(__file__).parents[1] / "gentk"
SECRET = "hf_doNotTellAnyone0123456789"


PICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "shelve"}
RUNS = {"eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler"}
WRITES = {"extractall", "unpack_archive", "extract_archive"}


def name(node: ast.expr) -> str:
    """`a.b.c` of a call's function; a call in it counts as `()`."""
    match node:
        case ast.Attribute(value=value, attr=attr):
            return f"{name(value)}.{attr}"
        case ast.Name(id=word):
            return word
        case ast.Call():
            return "()"
    return "?"


def faults(source: str) -> Iterator[str]:
    """What may not stand in the package, whatever it is given."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (
                f"import {m}"
                for m in modules
                if m.split(".")[0] in {"dill", "joblib", "marshal", "shelve", "cloudpickle"}
            )
        if not isinstance(node, ast.Call):
            continue
        called = name(node.func)
        given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        last = called.rpartition(".")[2]
        if called in {
            "eval",
            "exec",
            "compile",
            "os.system",
            "os.popen",
            "pickle.load",
            "pickle.loads",
            "pickle.Unpickler",
        }:
            yield called
        if called == "torch.load" and given.get("weights_only") is not True:
            yield "torch.load without weights_only=True"
        if called in {"np.load", "numpy.load"} and given.get("allow_pickle") is not False:
            yield "np.load without allow_pickle=False"
        if called.startswith("yaml.") and last in {"load", "load_all", "full_load", "unsafe_load", "safe_load"}:
            yield called
        if given.get("shell") is True or given.get("trust_remote_code") is True or given.get("allow_pickle") is True:
            yield f"{called}(shell, trust_remote_code or allow_pickle)"
        if last in {"extractall", "unpack_archive", "extract_archive"} or called in {
            "tarfile.open",
            "urllib.request.urlretrieve",
        }:
            yield called
        if last == "from_pretrained" and "local_files_only" not in {k.arg for k in node.keywords}:
            yield f"{called} that may fetch"


_CHECK = "engine/exporting/ddpm_pipeline.py"  # reads back the folder that it has just written
ALLOWED = {
    (_CHECK, "diffusers.DDPMScheduler.from_pretrained that may fetch"),
    (_CHECK, "diffusers.UNet2DModel.from_pretrained that may fetch"),
    ("data/cifar10.py", "tarfile.open"),  # the members that it knows by name, read and never unpacked
}


def test_no_call_that_runs_what_it_reads() -> None:
    paths = sorted(PACKAGE.rglob("*.py"))
    assert len(paths) > 100
    found = {(str(path.relative_to(PACKAGE)), fault) for path in paths for fault in faults(path.read_text("utf-8"))}
    assert found <= ALLOWED, sorted(found - ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, map_location='cpu', weights_only=flag)",
        "pickle.load(file)",
        "pickle.Unpickler(file).load()",
        "import joblib",
        "from dill import load",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.unsafe_load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "tarfile.open(path).extractall(folder)",
        "zipfile.ZipFile(path).extractall(folder)",
        "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, local_files_only=True, trust_remote_code=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert list(faults(source))


@pytest.mark.parametrize(
    "source",
    ["torch.load(path, weights_only=True)", "np.load(f, allow_pickle=False)", "net.eval()", "self.extract(x)",
     "m.from_pretrained(place, local_files_only=True)"],
)  # fmt: skip
def test_and_nothing_else(source: str) -> None:
    assert list(faults(source)) == []


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch CANARY']",
        "a: !!python/name:os.system",
        "a: !!python/module:os",
        "!!python/object/new:os.system ['touch CANARY']",
        "a: !include /etc/passwd",
        "a: &x [1, 2]\nb: *x",
    ],
)
def test_yaml_makes_plain_values_only(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError):
        yaml12.load(text, source="hostile.yaml")
    assert list(tmp_path.iterdir()) == []


def test_the_origin_of_an_import_keeps_no_credentials() -> None:
    told = importing.public(f"https://user:{SECRET}@host.example:8443/a/b.pkl?token={SECRET}&x=1#part-{SECRET}")
    assert told == "https://host.example:8443/a/b.pkl"
    assert importing.public("https://host.example/a%20b.pt") == "https://host.example/a%20b.pt"


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that W&B is told, by a stand-in that takes what the real one takes."""
    told: list[Any] = []

    class Run:
        def define_metric(self, *given: Any, **more: Any) -> None:
            told.append((given, more))

        def log(self, values: Any) -> None:
            told.append(values)

        def finish(self) -> None:
            told.append("finish")

    module = types.ModuleType("wandb")

    def init(**given: Any) -> Run:
        told.append(given)
        return Run()

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def test_neither_trackers_nor_run_folders_get_the_environment(
    heard: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("WANDB_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, f"http://u:{SECRET}@proxy.example" if "PROXY" in variable else SECRET)
    (tmp_path / "r.yaml").write_text(DENOISER)
    words = ["train", "--recipe", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run"), "--quiet"]
    result = CliRunner().invoke(app, [*words, "--set", "train.track=[wandb, tensorboard]"])
    assert result.exit_code == 0, result.output
    first, *rest = heard
    assert set(first) == {"project", "name", "id", "resume", "dir", "settings"}
    assert first["settings"] == {"console": "off", "disable_code": True, "disable_git": True, "x_disable_meta": True}
    numbers = [value for each in rest if isinstance(each, dict) for value in each.values()]
    assert len(numbers) > 10
    assert all(isinstance(value, int | float) for value in numbers), "numbers and nothing else"
    assert SECRET not in repr(heard)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any("tensorboard" in str(path) for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    json.loads((tmp_path / "run" / "run.json").read_text())
