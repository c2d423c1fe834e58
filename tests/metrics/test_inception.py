"""The FID's InceptionV3: the published file's layout, equal to torch-fidelity's network, always in eval mode."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fid_peers import images, peer, write_weights
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.errors import GentkError
from gentk.metrics.resizing import tf1_bilinear
from gentk.nets import inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("inception") / "weights.pth")


@pytest.fixture(scope="module")
def x() -> Tensor:
    return (tf1_bilinear(images(2), inception.SIDE) - 128) / 128


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_layout_of_the_published_file(weights: Path) -> None:
    state = inception.load(weights).state_dict()
    assert len(state) == 566
    assert sum(value.numel() for value in state.values()) == 23_885_486
    assert state["Mixed_6c.branch7x7dbl_3.conv.weight"].shape == (160, 160, 1, 7)
    assert state["fc.weight"].shape == (1008, 2048)


@torch.no_grad()
def test_equal_to_torch_fidelity(weights: Path, x: Tensor) -> None:
    """Its network from the same file on the same images: equal but for the last bits of their resize."""
    module = peer("torch_fidelity.feature_extractor_inceptionv3")
    names = ["2048", "logits_unbiased", "logits"]
    theirs = module.FeatureExtractorInceptionV3("i", names, feature_extractor_weights_path=str(weights))(images(2))
    net = inception.load(weights)
    features = net(x)
    ours = features, net.logits(features), net.logits(features, bias=True)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.shape == expected.shape
        assert relative(found, expected) < 1e-5
    assert relative(ours[1], ours[2]) > 1e-3, "the bias must tell"
    assert relative(features[:1], features[1:]) > 1e-2, "features that do not vary would compare equal anyway"


@torch.no_grad()
def test_batch_norm_folds_into_the_convolutions(weights: Path, x: Tensor) -> None:
    net = inception.load(weights)
    before = net.state_dict()["Mixed_5b.branch1x1.conv.weight"].clone()
    features = net(x)
    assert features.min() >= 0
    assert relative(net.fused()(x), features) < 1e-5
    assert torch.equal(net.state_dict()["Mixed_5b.branch1x1.conv.weight"], before), "the copy alone was to change"


@torch.no_grad()
@pytest.mark.parametrize("mistake", ["padding counts", "average last", "half epsilon"])
def test_what_tells_it_from_other_inceptions_is_seen(
    mistake: str, weights: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tolerances of 1e-4 would not pass torchvision's averages, its last block, or another epsilon."""
    net = inception.load(weights)
    features = net(x[:1])
    if mistake == "padding counts":
        average = F.avg_pool2d
        monkeypatch.setattr(F, "avg_pool2d", lambda *args, count_include_pad: average(*args, count_include_pad=True))
    elif mistake == "average last":
        net.get_submodule("Mixed_7c").chains = net.get_submodule("Mixed_7b").chains
    else:
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps /= 2
    assert relative(net(x[:1]), features) > 5e-4


@torch.no_grad()
def test_always_in_eval_mode(weights: Path, x: Tensor) -> None:
    """`train()` changes nothing, an image's features do not depend on the batch; in training mode they would."""
    net = inception.load(weights).train()
    assert not any(module.training for module in net.modules())
    alone = net(x[:1])
    assert relative(net(x)[:1], alone) < 1e-5
    assert not any(parameter.requires_grad for parameter in net.parameters())
    for module in net.modules():
        module.training = True
    assert relative(net(x)[:1], alone) > 0.1


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("the file's code was run",)


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda state: {k: v for k, v in state.items() if k != key}


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (without("fc.bias"), r"1 tensors .* \(566 tensors\): fc\.bias: absent, not \(1008,\)"),
    "torchvision's": (lambda s: s | {"AuxLogits.fc.weight": s["fc.bias"]}, "AuxLogits.fc.weight: .1008,., not here"),
    "shape": (lambda s: s | {"fc.weight": torch.zeros(1000, 2048)}, r"fc\.weight: \(1000, 2048\), not \(1008, 2048\)"),
    "number": (lambda s: s | {"fc.weight": 3}, "fc.weight: no tensor"),
    "list": (lambda s: list(s.values()), "566 tensors are not those"),
    "nan": (lambda s: s | {"fc.bias": s["fc.bias"] * torch.nan}, "NaN or infinity in fc.bias"),
    "code": (lambda s: s | {"fc.bias": Code()}, "cannot be read as a state dict"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_files_are_refused(kind: str, weights: Path, tmp_path: Path) -> None:
    change, message = WRONG[kind]
    path = tmp_path / "other.pth"
    # One stored number a tensor: the shapes are what is looked at, and 95 MB a case would be slow.
    state = {k: v.new_ones(()).expand(v.shape) for k, v in torch.load(weights, weights_only=True).items()}
    torch.save(change(state), path)
    with pytest.raises(GentkError, match=message) as failure:
        inception.load(path)
    assert str(path) in str(failure.value)
    assert failure.value.hint


@pytest.mark.parametrize("content", [b"", b"no weights", pickle.dumps(Code())], ids=["empty", "text", "pickle"])
def test_files_that_are_no_weights(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(GentkError, match="cannot be read as a state dict"):
        inception.load(path)
