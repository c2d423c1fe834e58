"""Classifiers by name, run and file: what they are, that they answer in [0, 1], and what is said of those that fail."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from gentk import data
from gentk.defences import classifiers
from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.nets.cifar_resnet import CifarResNet
from gentk.nets.classifier import SmallCnn
from gentk.nets.small_classifiers import ReluMlp, SmallResNet, TwoConv
from gentk.nets.wide_resnet import WideResNet
from gentk.recipe.classifiers import ARCHITECTURES, Classifier
from gentk.recipe.schema import Data

CPU = torch.device("cpu")
on_real_data = pytest.mark.skipif("GENTK_DATA" not in os.environ, reason="GENTK_DATA is not set: no weights here")


def load(name: object, shape: tuple[int, ...] = (1, 8, 8), classes: int = 10, **own: Any) -> classifiers.Judge:
    return classifiers.load(Classifier(name=str(name), **own), shape=shape, classes=classes, where=CPU)


def right(judge: classifiers.Judge, name: str, n: int | None = None) -> int:
    """How many of the first n test images it gets right, bytes over 255."""
    split, found = data.load(Data(name=name), "test"), 0
    assert split.y is not None
    for part in torch.arange(n or len(split)).split(1000):
        found += int((judge.net(split.x[part].float() / 255).argmax(1) == split.y[part]).sum())
    return found


def test_the_shipped_one_sees_images_in_zero_to_one() -> None:
    """361 of 364, as its header says; what is fed the network itself, in [-1, 1], gives as much and [0, 1] does not."""
    judge = load("classifier-digits")
    assert right(judge, "digits") == 361
    assert judge.classes == 10
    assert judge.shape == (1, 8, 8)
    bare = judge.net.backbone
    judge_without = classifiers.Judge("bare", bare, 10, None, "")
    assert right(judge_without, "digits") < 361


NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "resnet20": (CifarResNet(20, classes=7), (3, 32, 32)),
    "resnet44": (CifarResNet(44, classes=7), (3, 32, 32)),
    "small-cnn": (SmallCnn(size=8, channels=1, classes=7, width=12, features=9, dropout=0.1), (1, 8, 8)),
    "two-conv": (TwoConv(channels=1, size=28, classes=7), (1, 28, 28)),
    "cnn_wide": (TwoConv(channels=3, size=32, classes=7), (3, 32, 32)),
    "resnet4b": (SmallResNet(classes=7), (3, 32, 32)),
    "mlp": (ReluMlp((64, 20, 15, 7)), (1, 8, 8)),
}


@pytest.mark.parametrize("kind", ["safetensors", "torch", "checkpoint"])
@pytest.mark.parametrize("name", NETS)
def test_files_with_a_stated_architecture(name: str, kind: str, tmp_path: Path) -> None:
    """A bare file of weights in three forms answers as the network that it was saved from."""
    net, shape = NETS[name]
    net.eval()
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    if kind == "safetensors":
        safetensors.torch.save_file(state, path := tmp_path / "w.safetensors")
    else:
        wrapped = {f"module.{k}": v for k, v in state.items()}
        torch.save(state if kind == "torch" else {"state_dict": wrapped, "epoch": 3}, path := tmp_path / "w.pth")
    channels = shape[0]
    judge = load(path, shape, 7, architecture=name, mean=(0.4,) * channels, std=(0.2,))
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(judge.net(x), net((x - 0.4) / 0.2), rtol=0, atol=1e-5)
        assert float((judge.net(x) - net(x)).abs().max()) > 1e-3  # the normalisation is inside: the control
    assert judge.classes == 7
    assert not any(p.requires_grad for p in judge.net.parameters())
    assert not judge.net.training


def test_every_stated_architecture_is_one_that_is_built() -> None:
    small = {"wrn-70-16"}  # 267 million parameters: built by the class that wrn-28-10 is
    for name in set(ARCHITECTURES) - small - {"small-cnn", "mlp"}:
        with torch.device("meta"):
            net = classifiers._architecture(name, {}, (3, 32, 32), 10)
        assert isinstance(net, nn.Module)


def test_wide_resnet_has_the_published_size_and_names() -> None:
    """36,479,194 parameters of WRN-28-10 on ten classes, as its authors count them (36.5 million)."""
    with torch.device("meta"):
        net = WideResNet(28, 10)
    assert sum(p.numel() for p in net.parameters()) == 36_479_194
    names = set(net.state_dict())
    for name in (
        "conv1.weight",
        "block1.layer.0.convShortcut.weight",
        "block3.layer.3.conv2.weight",
        "bn1.bias",
        "fc.bias",
    ):
        assert name in names
    assert "block1.layer.1.convShortcut.weight" not in names
    small = WideResNet(10, 1, classes=5).eval()
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(RecipeError, match="6 n \\+ 4"):
        WideResNet(27)


def test_a_wide_block_against_its_formula() -> None:
    """Norm, ReLU, convolution, twice; the shortcut of a block that widens starts from the first ReLU."""
    torch.manual_seed(0)
    block = WideResNet(10, 2).block2.layer[0].eval()
    x = torch.randn(2, 32, 8, 8)
    inner = torch.relu(block.bn1(x))
    by_hand = block.convShortcut(inner) + block.conv2(torch.relu(block.bn2(block.conv1(inner))))
    torch.testing.assert_close(block(x), by_hand)
    assert block(x).shape == (2, 64, 4, 4)


@pytest.mark.parametrize(
    ("own", "said", "kind"),
    [
        ({}, "do not say their architecture", RecipeError),
        ({"architecture": "wrn-28"}, "unknown `wrn-28`; did you mean `wrn-28-10`", RecipeError),
        ({"architecture": "resnet20"}, "holds no resnet20", RecipeError),
        ({"architecture": "two-conv", "mean": (0.1, 0.2)}, "2 values, the images have 1 channels", RecipeError),
        ({"architecture": "two-conv", "classes": 3}, "holds no two-conv of 3 classes", RecipeError),
    ],
)
def test_files_that_do_not_fit(own: dict[str, Any], said: str, kind: type[GentkError], tmp_path: Path) -> None:
    safetensors.torch.save_file(TwoConv(channels=1, size=28).state_dict(), path := tmp_path / "w.safetensors")
    with pytest.raises(kind, match=said) as told:
        load(path, (1, 28, 28), **own)
    assert told.value.hint


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(MissingAsset, match="no classifier `mnist_cnn_kw1`; did you mean `mnist_cnn_kw01`"):
        load("mnist_cnn_kw1")
    with pytest.raises(MissingAsset, match="no such file"):
        load(tmp_path / "absent.pth", architecture="resnet20")
    with pytest.raises(RecipeError, match="is a denoiser"):
        load("edm-digits")
    with pytest.raises(RecipeError, match="takes images of shape"):
        load("classifier-digits", (1, 28, 28))
    with pytest.raises(RecipeError, match="says itself what it is"):
        load("classifier-digits", mean=(0.5,))
    (tmp_path / "w.pth").write_text("no pickle")
    with pytest.raises(GentkError, match=r"w\.pth"):
        load(tmp_path / "w.pth", architecture="resnet20")
    torch.save({"a": 1}, tmp_path / "v.pth")
    with pytest.raises(GentkError, match="holds no state dict"):
        load(tmp_path / "v.pth", architecture="resnet20")


def test_an_absent_package_is_named_with_its_remedy() -> None:
    for kind, module in (("timm", "timm"), ("torchvision", "torchvision")):
        if importlib.util.find_spec(module) is None:
            with pytest.raises(MissingAsset, match=f"{module} cannot be imported") as told:
                load(f"{kind}:resnet18", (3, 32, 32))
            assert "gentk[eval]" in told.value.hint


class _Zoo:
    """Stands in for torchvision's: what it would be asked, without the package."""

    asked: dict[str, Any]

    @staticmethod
    def list_models() -> list[str]:
        return ["tiny", "tinier"]

    @classmethod
    def get_model(cls, name: str, **own: Any) -> nn.Module:
        cls.asked = own
        if own.get("weights"):
            raise OSError("no network")
        return nn.Sequential(nn.Flatten(), nn.Linear(12, own.get("num_classes", 1000)))


def test_packaged_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers.extras, "load", lambda module, extra: _Zoo)
    with pytest.raises(RecipeError, match="has no model `tinny`; did you mean `tiny`"):
        load("torchvision:tinny", (3, 2, 2))
    with pytest.raises(MissingAsset, match="its weights cannot be had: no network") as told:
        load("torchvision:tiny", (3, 2, 2))
    assert "classifier.architecture=torchvision:tiny" in told.value.hint
    state = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).state_dict()
    safetensors.torch.save_file(state, path := tmp_path / "w.safetensors")
    judge = load(path, (3, 2, 2), 4, architecture="torchvision:tiny")
    assert _Zoo.asked == {"weights": None, "num_classes": 4}
    x = torch.full((1, 3, 2, 2), 0.5)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    by_hand = ((x - mean) / std).flatten(1) @ state["1.weight"].T + state["1.bias"]
    torch.testing.assert_close(judge.net(x), by_hand)


@on_real_data
@pytest.mark.parametrize(
    ("name", "architecture", "of", "expected"),
    [
        ("mnist_cnn_kw01", "two-conv", "mnist", 9820),
        ("mnist_cnn_a_adv", "two-conv", "mnist", 9633),
        ("fashion_mnist_cnn_kw01", "two-conv", "fashion-mnist", 7827),
    ],
)
def test_published_accuracies_by_file_and_by_name(name: str, architecture: str, of: str, expected: int) -> None:
    """The counts of $GENTK_DATA/README.md on the whole test set; the CIFAR nets: tests/nets/test_classifiers.py."""
    path = Path(os.environ["GENTK_DATA"]) / "classifiers" / f"{name}.safetensors"
    assert right(load(path, (1, 28, 28), architecture=architecture), of) == expected
    assert right(load(name, (1, 28, 28)), of, 1000) == right(
        load(path, (1, 28, 28), architecture=architecture), of, 1000
    )


@on_real_data
def test_resnet20_by_its_file(tmp_path: Path) -> None:
    """With the normalisation stated as the published one says: the same answers; without it, others."""
    path = Path(os.environ["GENTK_DATA"]) / "classifiers" / "cifar10_resnet20.safetensors"
    own: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "architecture": "resnet20"}
    n = 300
    count = right(load("cifar10_resnet20", (3, 32, 32)), "cifar10", n)
    assert count == right(load(path, (3, 32, 32), **own), "cifar10", n)
    assert right(load(path, (3, 32, 32), architecture="resnet20"), "cifar10", n) < count - 60
