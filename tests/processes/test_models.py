"""Models on disk: what is saved is what is loaded, bit for bit, and what cannot be loaded says why."""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from gentk import __version__, nets
from gentk.errors import GentkError, MissingAsset, RecipeError, RunFailed
from gentk.nets import weights
from gentk.processes import models
from gentk.processes.denoiser import Denoiser
from gentk.recipe import schema
from gentk.recipe.stamp import FORMAT, read_header

CPU = torch.device("cpu")
KINDS = ("denoiser", "generator", "classifier")
UNET = schema.UNet(name="unet", width=8, multipliers=(1, 2), attention=(4,), dropout=0.1)
CNN = schema.SmallCnn(name="small-cnn", width=4, features=6)
FLOW = schema.RectifiedFlow(name="rectified-flow", t_min=1e-3)


def network(section: Any, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nets.build(section, shape=(1, 8, 8), classes=3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return net


def header(kind: str) -> dict[str, Any]:
    section = CNN if kind == "classifier" else UNET
    head = {"kind": kind, "net": section.model_dump(mode="json"), "licence": "Apache-2.0"}
    head["data"] = {"name": "digits", "shape": (1, 8, 8), "classes": 3}
    if kind != "classifier":
        head |= {"process": FLOW.model_dump(mode="json"), "predicts": "flow", "sigma_data": 0.4}
    return head | ({"sigma_init": 2.5} if kind == "generator" else {})


def save(path: Path, kind: str, **changes: Any) -> nn.Module:
    net = network(CNN if kind == "classifier" else UNET)
    weights.save(path, net, header(kind) | changes)
    return net


def load(path: Path, *kinds: str) -> models.Model:
    return models.load(str(path), kinds=kinds or KINDS, where=CPU)


# --- round trip -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_what_is_loaded(tmp_path: Path, kind: str) -> None:
    """State and outputs bit for bit; the model is ready to use: eval mode, no gradients."""
    path = tmp_path / "export" / "m.safetensors"  # the folder is made
    net = save(path, kind).eval()
    model = load(path, kind)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if kind == "classifier":
            assert torch.equal(model.net(x), net(x))
            state = model.net.state_dict()
        else:
            assert isinstance(model.net, Denoiser)
            assert model.net.process.name == "rectified-flow"
            assert model.net.process.t_min == 1e-3
            assert (model.net.predicts, model.net.sigma_data) == ("flow", 0.4)
            t, y = torch.linspace(0.1, 1, 4), torch.tensor([0, 1, 2, 3])
            assert torch.equal(model.net(x, t, y), Denoiser(net, model.net.process, "flow", 0.4)(x, t, y))
            state = model.net.net.state_dict()
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert not any(module.training for module in model.net.modules())
    assert not any(p.requires_grad for p in model.net.parameters())
    assert (model.shape, model.classes, model.name) == ((1, 8, 8), 3, str(path))


def test_the_header_holds_what_was_given_and_where_it_is_from(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    net = save(path, "generator", metrics={"fd": 1.5}, recipe="task: distill\n", seed=7)
    read = read_header(path)
    given = json.loads(json.dumps(header("generator"))) | {
        "metrics": {"fd": 1.5},
        "recipe": "task: distill\n",
        "seed": 7,
    }
    own = {
        "format": FORMAT,
        "gentk_version": __version__,
        "parameters": sum(p.numel() for p in net.parameters()),
        "bytes": path.stat().st_size,
    }
    assert read == given | own
    assert load(path).header == read


def test_the_file_is_plain_safetensors_in_plain_order(tmp_path: Path) -> None:
    """Any reader gets the tensors by name; channels-last weights are written in the usual order."""
    net = save(tmp_path / "plain.safetensors", "denoiser")
    weights.save(tmp_path / "last.safetensors", models.fast_layout(net), header("denoiser"))
    assert (tmp_path / "last.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    tensors = safetensors.torch.load_file(tmp_path / "plain.safetensors")
    assert all(torch.equal(tensors[k], v) for k, v in net.state_dict().items())


def test_saving_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save(path, "denoiser")
    net = network(UNET, seed=1)
    weights.save(path, net, header("denoiser"))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert torch.equal(load(path).net.net.inp.weight, net.inp.weight)


# --- what can be wrong ------------------------------------------------------------------------------------------------


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    save(tmp_path / "m.safetensors", "classifier")
    with pytest.raises(RecipeError, match="is a classifier, here a denoiser or generator is needed") as failure:
        load(tmp_path / "m.safetensors", "denoiser", "generator")
    assert failure.value.hint


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(MissingAsset, match="no model"):
        load(tmp_path / "absent.safetensors")
    with pytest.raises(MissingAsset, match="did you mean `classifier-digits`"):
        models.load("clasifier-digits", kinds=KINDS, where=CPU)


def test_another_architecture_than_the_header_says(tmp_path: Path) -> None:
    """Tensors of a wrong shape, missing and left over are named, a few of them, with a count of the rest."""
    path = tmp_path / "m.safetensors"
    save(path, "denoiser", net=UNET.model_dump(mode="json") | {"width": 16})
    with pytest.raises(GentkError, match=r"another architecture .*: \S+ has shape \(.*\), expected \(.*and \d+ more"):
        load(path)
    save(path, "denoiser", net=UNET.model_dump(mode="json") | {"blocks": 2})
    with pytest.raises(GentkError, match=r"another architecture .*: missing down\.0\.1\."):
        load(path)
    save(path, "denoiser", net=UNET.model_dump(mode="json") | {"attention": []})
    with pytest.raises(GentkError, match=r"another architecture .*unexpected \S+\.attend\."):
        load(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"net": {"name": "transformer"}}, "header: net: not understood"),
        ({"net": {"name": "unet", "wdith": 8}}, "header: net: not understood"),
        ({"process": {"name": "ou"}}, "header: process: not understood"),
        ({"format": FORMAT + 1}, rf"written by a newer gentk \(format {FORMAT + 1}\)"),
    ],
)
def test_a_header_that_is_not_understood(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    save(tmp_path / "m.safetensors", "denoiser", **changes)
    with pytest.raises(GentkError, match=said) as failure:
        load(tmp_path / "m.safetensors")
    assert "upgrade gentk" in failure.value.hint


def test_inputs_of_published_networks_are_read(tmp_path: Path) -> None:
    """With `inputs` in the header the network is called as it says; without, as gentk's own are."""
    own = schema.Inputs(scale="process", label="time", factor=-999.0, offset=999.0)
    path = tmp_path / "m.safetensors"
    net = save(path, "denoiser", inputs=own.model_dump(mode="json"), predicts="reverse-flow").eval()
    loaded = load(path).net
    assert isinstance(loaded, Denoiser)
    assert (loaded.inputs, loaded.predicts) == (own, "reverse-flow")
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.25, 0.75])
    with torch.no_grad():  # Liu et al.: x1 = x + (1 - t') F(x, 999 t'), t' = 1 - t
        want = x + t[:, None, None, None] * net(x, 999 * (1 - t))
        torch.testing.assert_close(loaded(x, t), want, rtol=1e-5, atol=1e-5)
    save(path, "denoiser")
    plain = load(path).net
    assert isinstance(plain, Denoiser)
    assert plain.inputs == schema.Inputs()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inputs": {"scale": "input"}}, "header: inputs: not understood"),
        ({"inputs": {"label": "time", "power": 2.0}}, "header: inputs: not understood"),
        ({"predicts": "noise"}, "header: predicts: not understood"),
    ],
)
def test_inputs_that_are_not_known_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    save(tmp_path / "m.safetensors", "denoiser", **changes)
    with pytest.raises(GentkError, match=said):
        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("damage", ["empty", "short", "long", "no header", "bad json", "foreign", "text"])
def test_a_damaged_file_names_itself(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "m.safetensors"
    save(path, "denoiser")
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    if damage == "foreign":
        safetensors.torch.save_file({"w": torch.zeros(1)}, path)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "short": data[:-1],
                "long": data + b"\x00",
                "no header": struct.pack("<Q", 2**60) + data[8:],
                "bad json": data[:8] + b"{" * length + data[8 + length :],
                "text": b"version https://git-lfs.github.com/spec/v1\n",
            }[damage]
        )
    with pytest.raises(GentkError, match=r"m\.safetensors: ") as failure:
        load(path)
    assert failure.value.hint


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A real OSError from the kernel in the middle of a write: the file size limit of the process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("stood", [False, True])
def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, stood: bool) -> None:
    """The model that stood there before stands still, whole; without one there is nothing, not half a file."""
    path = tmp_path / "m.safetensors"
    if stood:
        save(path, "denoiser")
    before = path.read_bytes() if stood else b""
    with largest_file(20_000), pytest.raises(RunFailed, match="cannot be written: File too large") as failure:
        weights.save(path, network(UNET, seed=1), header("denoiser"))
    assert "--out" in failure.value.hint
    assert [p.name for p in tmp_path.iterdir()] == (["m.safetensors"] if stood else [])
    if stood:
        assert path.read_bytes() == before
        load(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(RunFailed, match="cannot be written: Permission denied"):
        save(tmp_path / "locked" / "m.safetensors", "denoiser")


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "export").write_text("")
    with pytest.raises(RunFailed, match="cannot be written"):
        save(tmp_path / "export" / "m.safetensors", "denoiser")
