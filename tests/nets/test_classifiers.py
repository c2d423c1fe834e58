"""Classifiers of published weights: architecture without the files, accuracy with them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from gentk.data import DataSet, load
from gentk.errors import MissingAsset, RecipeError, RunFailed
from gentk.nets.cifar_resnet import BasicBlock, CifarResNet
from gentk.nets.image_classifier import PRETRAINED, ImageClassifier, pretrained
from gentk.nets.published import Published, fill
from gentk.nets.small_classifiers import ReluMlp, SmallResNet, TwoConv
from gentk.recipe.schema import Data

on_real_data = pytest.mark.skipif("GENTK_DATA" not in os.environ, reason="GENTK_DATA is not set: no weights here")

BUILDS: list[tuple[Callable[[], Any], tuple[int, ...], int]] = [
    (lambda: CifarResNet(20), (3, 32, 32), 64),
    (SmallResNet, (3, 32, 32), 100),
    (lambda: TwoConv(channels=3, size=32), (3, 32, 32), 100),
    (lambda: TwoConv(channels=1, size=28), (1, 28, 28), 100),
    (lambda: ReluMlp((784, 512, 128, 10)), (1, 28, 28), 128),
]


def randomised(net: nn.Module) -> nn.Module:
    """`net` in eval mode with random weights, batch norm's statistics included."""
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.weight, module.running_var):
                    values.copy_(torch.rand(values.shape, generator=gen) + 0.5)
                for values in (module.bias, module.running_mean):
                    values.copy_(torch.randn(values.shape, generator=gen))
            elif isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, generator=gen)
    return net.eval()


def images(n: int, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


# --- architecture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "shape", "width"), BUILDS)
def test_the_last_linear_layer_turns_features_into_logits(
    build: Callable[[], Any], shape: tuple[int, ...], width: int
) -> None:
    net, x = randomised(build()), images(7, shape)
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        features, logits = net.features(x), net(x)
        assert features.shape == (7, width)
        assert (features >= 0).all()
        assert features.std(0).max() > 0
        torch.testing.assert_close(logits, last(features), rtol=1e-5, atol=1e-5)
        # Eval mode: what a picture gives does not depend on the others; the control is batch norm in train mode.
        torch.testing.assert_close(net.features(x[:1]), features[:1], rtol=1e-4, atol=1e-4)
        if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
            net.train()
            assert (net.features(x[:1]) - features[:1]).abs().max() > 0.1


@pytest.mark.parametrize(
    # Table 6 of He et al. gives 0.27, 0.46, 0.66 and 0.85 million parameters.
    ("depth", "millions"),
    [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)],
)
def test_resnet_of_the_paper_s_depths(depth: int, millions: float) -> None:
    net = CifarResNet(depth)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in net.modules()) == depth
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    with torch.no_grad():
        assert net.eval()(images(2, (3, 32, 32))).shape == (2, 10)


@pytest.mark.parametrize("depth", [0, 2, 18, 34])
def test_resnet_of_another_depth(depth: int) -> None:
    with pytest.raises(RecipeError, match=rf"{depth} is not 6 n \+ 2") as failure:
        CifarResNet(depth)
    assert "20, 32, 44 or 56" in failure.value.hint


def test_shortcut_takes_every_second_pixel_between_zeros() -> None:
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    out = BasicBlock(4, 8).shortcut(x)
    expected = torch.zeros(2, 8, 3, 3)
    for c in range(4):
        for i in range(3):
            for j in range(3):
                expected[:, 8 // 4 + c, i, j] = x[:, c, 2 * i, 2 * j]
    assert torch.equal(out, expected)
    assert torch.equal(BasicBlock(4, 4).shortcut(x), x)
    assert not torch.equal(out[:, :4], expected[:, 2:6])  # the zeros are not all on one side


def test_a_block_against_its_formula() -> None:
    """relu(shortcut + f) in float64, batch norm written out with the running statistics."""
    block = randomised(BasicBlock(4, 8)).double()
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        columns = nn.functional.unfold(x, 3, padding=1, stride=stride)
        return (weight.flatten(1) @ columns).unflatten(2, (x.shape[2] // stride, -1))

    def norm(x: Tensor, bn: nn.BatchNorm2d) -> Tensor:
        w, b, m, v = (t[:, None, None] for t in (bn.weight, bn.bias, bn.running_mean, bn.running_var))
        return (x - m) / (v + 1e-5).sqrt() * w + b

    with torch.no_grad():
        inner = norm(conv(x, block.conv1.weight, 2), block.bn1).clamp(min=0)
        expected = (norm(conv(inner, block.conv2.weight, 1), block.bn2) + block.shortcut(x)).clamp(min=0)
        torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


def test_normalisation_is_the_wrapper_s() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    backbone, x = randomised(TwoConv(channels=3, size=32)), images(3, (3, 32, 32)).requires_grad_()
    net = ImageClassifier(backbone, mean=mean, std=std)
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(net(x), backbone(by_hand))
    torch.testing.assert_close(net.features(x), backbone.features(by_hand))
    assert not torch.allclose(net(x), backbone(x), rtol=0.01)
    net(x).sum().backward()  # attacks need the gradient in units of [0, 1]
    inner = by_hand.detach().requires_grad_()
    backbone(inner).sum().backward()
    assert x.grad is not None
    assert inner.grad is not None
    torch.testing.assert_close(x.grad, inner.grad / torch.tensor(std)[:, None, None])
    assert not {"mean", "std"} & set(net.state_dict())


# --- files ------------------------------------------------------------------------------------------------------------


def publish(net: nn.Module, path: Path) -> Published:
    """The state of `net` as a published file, without batch norm's counters."""
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    content = safetensors.torch.save(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Published(path.stem, path.parent.name, len(content), hashlib.sha256(content).hexdigest(), "o/r@c: f", "MIT")


def test_fill_from_a_path_or_from_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = randomised(CifarResNet(20))
    path = tmp_path / "classifiers" / "n.safetensors"
    weights = publish(net, path)
    x = images(2, (3, 32, 32))
    for root, given in ((None, path), (tmp_path, None), (tmp_path / "absent", path)):
        monkeypatch.delenv("GENTK_DATA", raising=False)
        if root:
            monkeypatch.setenv("GENTK_DATA", str(root))
        fresh = CifarResNet(20)
        fill(fresh, weights, given)
        assert torch.equal(fresh.eval()(x), net(x))


def test_an_absent_file_says_what_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENTK_DATA", raising=False)
    weights = PRETRAINED["cifar10_resnet20"].weights
    with pytest.raises(MissingAsset, match="GENTK_DATA is not set") as failure:
        pretrained("cifar10_resnet20")
    message = str(failure.value)
    for fact in ("classifiers/cifar10_resnet20.safetensors", "1092776 bytes", weights.sha256, weights.source):
        assert fact in message
    assert "--weights PATH" in failure.value.hint
    assert "GENTK_DATA" in failure.value.hint
    monkeypatch.setenv("GENTK_DATA", str(tmp_path))
    with pytest.raises(MissingAsset, match=f"no file {tmp_path}/classifiers/cifar10_resnet20.safetensors"):
        pretrained("cifar10_resnet20")
    with pytest.raises(MissingAsset, match=f"no file {tmp_path}/x.safetensors"):
        pretrained("cifar10_resnet20", tmp_path / "x.safetensors")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    weights = publish(TwoConv(channels=1, size=28), path)
    with path.open("r+b") as f:  # one bit of the last tensor: the file still loads
        f.seek(-1, os.SEEK_END)
        last = f.read(1)[0]
        f.seek(-1, os.SEEK_END)
        f.write(bytes([last ^ 1]))
    with pytest.raises(RunFailed, match=rf"{path}: .*sha256 [0-9a-f]+, expected .*{weights.sha256}"):
        fill(TwoConv(channels=1, size=28), weights, path)
    with pytest.raises(RunFailed, match="cnn_a_adv"):
        pretrained("mnist_cnn_a_adv", path)


def test_an_unknown_name() -> None:
    with pytest.raises(RecipeError, match="did you mean `cifar10_resnet20`"):
        pretrained("cifar10_resnet_20")


# --- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out() -> dict[str, DataSet]:
    return {name: load(Data(name=name), "test") for name in ("mnist", "fashion-mnist", "cifar10")}


@torch.no_grad()
def right(net: nn.Module, data: DataSet, n: int) -> int:
    assert data.y is not None
    net = net.to(memory_format=torch.channels_last)
    parts = zip(data.x[:n].split(100), data.y[:n].split(100), strict=True)
    return sum(int((net(x.float() / 255).argmax(1) == y).sum()) for x, y in parts)


@on_real_data
@pytest.mark.parametrize(
    # All 10000 test images, as data/README.md section 2 states them; that of resnet20 is in test_proxies.
    ("name", "data", "expected"),
    [
        ("cifar10_resnet4b_adv", "cifar10", 7720),
        ("cifar10_cnn_wide_robust", "cifar10", 6162),
        ("mnist_cnn_a_adv", "mnist", 9633),
        ("mnist_cnn_kw01", "mnist", 9820),
        ("fashion_mnist_cnn_kw01", "fashion-mnist", 7827),
        ("fashion_mnist_mlp", "fashion-mnist", 8946),
    ],
)
def test_accuracy(name: str, data: str, expected: int, held_out: dict[str, DataSet]) -> None:
    net = pretrained(name)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert right(net, held_out[data], 10000) == expected


def within(count: int, n: int, share: float) -> bool:
    """Whether `count` of `n` is within 3.5 standard errors of `share`: by chance it is not once in 2000 times."""
    return abs(count / n - share) < 3.5 * (share * (1 - share) / n) ** 0.5


@on_real_data
def test_accuracy_of_resnets_on_a_share(held_out: dict[str, DataSet]) -> None:
    """1000 images against the figures of 10000: 9263 for resnet32, and 3973 for resnet20 without normalisation."""
    n, cifar = 1000, held_out["cifar10"]
    assert within(right(pretrained("cifar10_resnet32"), cifar, n), n, 0.9263)
    net = pretrained("cifar10_resnet20")
    bare = ImageClassifier(net.backbone, mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    assert within(right(bare, cifar, n), n, 0.3973)
