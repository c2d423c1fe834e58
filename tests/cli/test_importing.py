"""`gentk models import`: from a name, a file, a folder or an address to a model that other commands find."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from gentk import nets
from gentk.cli import console
from gentk.cli.app import app
from gentk.recipe import schema, store, teachers
from tests.nets.test_importing import KWARGS, UNET, checkpoint, edm_file, fill

NOISE = schema.NoiseCnn(name="noise-cnn", widths=(4, 6), embedding=12)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory and cache, no proxies, no network forbidden."""
    for name in ("GENTK_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GENTK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    console.quiet(False)
    yield tmp_path / "work"
    console.quiet(False)


def gentk(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, f"{result.output}{result.exception!r}"
    return result


def import_(*words: str, code: int = 0) -> Any:
    return gentk("models", "import", *words, code=code)


def noise_file(path: Path) -> Path:
    state = fill(nets.build(NOISE, shape=(1, 8, 8), classes=0).state_dict())
    safetensors.torch.save_file(state, path, {"license": "MIT"})
    return path


def test_a_file_becomes_a_model_that_commands_find(place: Path) -> None:
    path = edm_file(place / "my-teacher.pkl")
    result = import_(str(path), "--as", "edm", "--data", "digits", "--licence", "CC0")
    out = store.imported_place("my-teacher")
    assert result.stdout == f"{out}\n"
    assert "licence: CC0" in result.stderr
    shown = json.loads(gentk("models", "show", "my-teacher", "--json").stdout)
    assert shown["licence"] == "CC0"
    assert shown["source"] == "my-teacher.pkl"
    assert shown["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "imported" in gentk("models", "list").stdout
    sampled = gentk("sample", "heun", "--model", "my-teacher", "-n", "4", "--nfe", "5", "--out", "run", "--json")
    assert json.loads(sampled.stdout)["metrics"]["n"] == 4
    assert (place / "run" / "samples").exists()
    plan = gentk("distill", "sim", "--teacher", "my-teacher", "--dry-run")
    assert "sim/edm-digits with teacher my-teacher" in plan.stderr


def test_a_file_elsewhere(place: Path) -> None:
    noise_file(place / "n.safetensors")
    result = import_(
        "n.safetensors", "--as", "noise-cnn", "--data", "digits", "--out", "sub/mine.safetensors", "--json"
    )
    answer = json.loads(result.stdout)
    assert (answer["model"], answer["path"], answer["licence"]) == ("mine", "sub/mine.safetensors", "MIT")
    assert answer["net"] == {"name": "noise-cnn", "widths": [4, 6], "embedding": 12}
    assert not store.imported()
    gentk("sample", "heun", "--model", "sub/mine.safetensors", "-n", "2", "--nfe", "5", "--out", "run")
    import_("n.safetensors", "--as", "noise-cnn", "--out", "sub/mine.safetensors", code=2)
    result = import_("n.safetensors", "--as", "noise-cnn", "--out", "sub/mine.safetensors", "--force", "--quiet")
    assert result.stderr == ""


def test_a_checkpoint_with_settings(place: Path) -> None:
    checkpoint(place / "c.pth", "ddpmpp")
    sets = [w for s in ("net.multipliers=[1, 2]", "net.blocks=2", "net.attention=[8]", "size=16") for w in ("--set", s)]
    result = import_("c.pth", "--as", "rectified-flow", "--name", "rf", *sets)
    assert "no --data" in result.stderr
    assert "licence: not stated" in result.stderr
    header = json.loads(gentk("models", "show", "rf", "--json").stdout)
    assert header["process"]["name"] == "rectified-flow"
    assert header["data"]["name"] == "unnamed"


def test_a_folder_of_diffusers(place: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    diffusers.UNet2DModel(**UNET).save_pretrained(place / "m" / "unet")
    diffusers.DDPMScheduler(1000).save_pretrained(place / "m" / "scheduler")
    assert import_("m", "--as", "ddpm").stdout == f"{store.imported_place('m')}\n"
    weights = place / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    header = json.loads(gentk("models", "show", "m", "--json").stdout)
    assert header["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["absent.pkl", "--as", "edm"], 3, "absent.pkl: no such file"),
        (["edm-cifar", "--as", "edm"], 3, "did you mean `edm-cifar10`?"),
        (["m.pkl"], 2, "m.pkl: which format?"),
        (["m.pkl", "--as", "edmm"], 2, "unknown format `edmm`; did you mean `edm`?"),
        (["m.pkl", "--as", "edm", "--data", "cifar10"], 2, "`cifar10` has (3, 32, 32)"),
        (["m.pkl", "--as", "edm", "--set", "size"], 2, "--set size: not KEY=VALUE"),
        (["m.pkl", "--as", "edm", "--set", "size=8"], 2, "no setting of this format"),
        (["m.pkl", "--as", "edm", "--out", "m.pt"], 2, "not a .safetensors file"),
        (["m.pkl", "--as", "edm", "--name", "a/b"], 2, "a name, not a path"),
        (["m.pkl", "--as", "edm", "--name", "edm-digits"], 2, "ships with gentk"),
        (["m.pkl", "--as", "edm", "--sha256", "0" * 64], 1, "expected 00000000"),
        (["m.pkl", "--as", "edm", "--sha256", ""], 0, ""),
        (["m.pkl", "--as", "edm", "--sha256", "a"], 1, "expected a"),
        (["m.pkl", "--as", "score-sde"], 1, "not a checkpoint"),
        (["cut.pkl", "--as", "edm"], 1, "cut.pkl: "),
        (["page.pkl", "--as", "edm"], 1, "a web page"),
        (["edm-cifar10", "--as", "ddpm"], 2, "`edm-cifar10` is of the format edm"),
        (["rectified-flow-cifar10"], 3, "gentk models import FILE --as rectified-flow --name rectified-flow-cifar10"),
    ],
)
def test_what_can_be_wrong(words: list[str], code: int, text: str, place: Path) -> None:
    path = edm_file(place / "m.pkl")
    (place / "cut.pkl").write_bytes(path.read_bytes()[:5000])
    (place / "page.pkl").write_bytes(b"<!doctype html>")
    result = import_(*words, code=code)
    assert text in result.stderr
    if code:
        assert result.stderr.count("error: ") == 1
        assert not list(place.parent.rglob("*.safetensors"))


def test_a_hostile_file(place: Path) -> None:
    (place / "m.pkl").write_bytes(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.")
    assert "m.pkl: asks for `os.system`: refused" in import_("m.pkl", "--as", "edm", code=1).stderr
    assert not (place / "canary").exists()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Serves the folder `served`."""
    (tmp_path / "served").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served"))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def known(monkeypatch: pytest.MonkeyPatch, address: str, **changes: Any) -> teachers.Teacher:
    """`edm-cifar10` as a model of digits that lies at the address."""
    old = teachers.BY_NAME["edm-cifar10"]
    row = dataclasses.replace(old, **{"source": f"{address}/{old.file}", "data": "digits", **changes})
    monkeypatch.setitem(teachers.BY_NAME, row.name, row)
    monkeypatch.setitem(teachers.BY_FILE, row.file, row)
    return row


def test_a_known_name_is_fetched_once(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = known(monkeypatch, address)
    served = edm_file(tmp_path / "served" / row.file)
    result = import_("edm-cifar10")
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    for said in (f"fetching {row.file}", f"this file's sha256 is {digest}", "licence: CC BY-NC-SA 4.0"):
        assert said in result.stderr
    header = json.loads(gentk("models", "show", "edm-cifar10", "--json").stdout)
    assert (header["source"], header["sha256"], header["licence"]) == (row.source, digest, row.licence)
    assert header["data"]["name"] == "digits"
    served.unlink()
    again = import_("edm-cifar10")
    assert "is here already" in again.stderr
    assert again.stdout == result.stdout
    import_("edm-cifar10", "--force")  # from the file that was kept
    edm_file(served)
    next((tmp_path / "cache" / "weights").iterdir()).unlink()
    assert import_("edm-cifar10", "--force", "--quiet").stderr == ""
    console.quiet(False)
    gentk("distill", "sim", "--teacher", "edm-cifar10", "--dry-run")


def test_a_known_name_with_a_checksum(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = known(monkeypatch, address, sha256="0" * 64)
    edm_file(tmp_path / "served" / row.file)
    assert "expected 0000" in import_("edm-cifar10", code=1).stderr
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []
    edm_file(tmp_path / "work" / row.file)
    assert "edm-cifar10 has 0000" in import_(row.file, "--as", "edm", code=1).stderr


def test_a_known_file_brought_by_hand(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = known(monkeypatch, "https://nowhere.invalid")
    edm_file(place / row.file)
    import_(row.file)
    header = json.loads(gentk("models", "show", "edm-cifar10", "--json").stdout)
    assert (header["licence"], header["data"]["name"]) == (row.licence, "digits")


def test_an_address(address: str, tmp_path: Path) -> None:
    edm_file(tmp_path / "served" / "theirs.pkl")
    import_(f"{address}/theirs.pkl", "--as", "edm")
    assert json.loads(gentk("models", "show", "theirs", "--json").stdout)["source"] == f"{address}/theirs.pkl"
    assert "answers 404" in import_(f"{address}/other.pkl", "--as", "edm", code=3).stderr


@pytest.mark.parametrize("name", ["edm-cifar10", "ddpm-cifar10"])
@pytest.mark.parametrize("way", ["forbidden", "closed"])
def test_without_a_network_the_commands_are_told_in_two_seconds(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if name == "ddpm-cifar10":
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        assert pytest.importorskip("huggingface_hub").snapshot_download  # imported once, not within the time below
    else:
        known(monkeypatch, "http://127.0.0.1:9")
    if way == "forbidden":
        monkeypatch.setenv("GENTK_OFFLINE", "1")
    row = teachers.BY_NAME[name]
    for words in (
        ["models", "import", name],
        ["distill", "sim", "--teacher", name],
        ["sample", "heun", "--model", name],
    ):
        start = time.monotonic()
        said = gentk(*words, code=3).stderr
        assert time.monotonic() - start < 2
        assert f"`gentk models import {name}`" in said
        file = row.file.rpartition("/")[2]
        assert f"`gentk models import {file} --as {row.format} --name {name}`" in said
        assert f"`gentk models import {name} --out {name}.safetensors`" in said


def test_progress_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from gentk.cli import importing

    clock = iter(range(0, 100, 7))
    monkeypatch.setattr(importing.time, "monotonic", lambda: float(next(clock)))
    with importing._Shown("x.pkl") as progress:
        for part in range(5):
            progress(part * 50_000_000, 200_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["x.pkl: 50 of 200 MB, 25%", "x.pkl: 150 of 200 MB, 75%"]
    monkeypatch.setattr(importing.sys.stderr, "isatty", lambda: True)
    clock = iter(range(0, 100, 7))
    with importing._Shown("x.pkl") as progress:
        progress(50_000_000, None)
        progress(200_000_000, 200_000_000)
    assert capsys.readouterr().err == "\rx.pkl: 50 MB\rx.pkl: 200 of 200 MB, 100%\n"
    console.quiet(True)
    with importing._Shown("x.pkl") as progress:
        assert progress is None


def test_tiny_networks_of_these_tests_are_tiny() -> None:
    net = nets.build(NOISE, shape=(1, 8, 8), classes=0)
    assert sum(p.numel() for p in net.parameters()) < 10_000
    assert KWARGS["model_channels"] == 16
    assert isinstance(net, torch.nn.Module)
