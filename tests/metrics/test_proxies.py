"""Proxy distances: what the extractors take and give, and the yardsticks of real data."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gentk.data import DataSet, load
from gentk.errors import MissingAsset, RecipeError
from gentk.metrics import proxies
from gentk.metrics.frechet import Moments, frechet
from gentk.metrics.proxies import Proxy
from gentk.nets.image_classifier import PRETRAINED, ImageClassifier
from gentk.recipe.schema import Data

on_real_data = pytest.mark.skipif("GENTK_DATA" not in os.environ, reason="GENTK_DATA is not set: no real data here")
SETS = {"resnet20": "cifar10", "mnist-cnn": "mnist", "fashion-mlp": "fashion-mnist"}
FILES = {"resnet20": "cifar10_resnet20", "mnist-cnn": "mnist_cnn_a_adv", "fashion-mlp": "fashion_mnist_mlp"}
DIMENSIONS = {"resnet20": 64, "mnist-cnn": 100, "fashion-mlp": 128}


def untrained(name: str) -> Proxy:
    """The proxy `name` with random weights."""
    entry = PRETRAINED[FILES[name]]
    torch.manual_seed(0)
    net = ImageClassifier(entry.build(), mean=entry.mean, std=entry.std).eval()
    return Proxy(name, "fd", entry.shape, {}, net, batch=3)


def noise(n: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize("name", proxies.names())
def test_bytes_in_float64_out_whatever_the_batch(name: str) -> None:
    proxy = untrained(name)
    x = noise(8, proxy.shape)
    out = proxy(x)
    assert out.shape == (8, DIMENSIONS[name])
    assert out.dtype == torch.float64
    assert not out.requires_grad
    torch.testing.assert_close(out, replace(proxy, batch=100)(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, proxy.net.features(x.float() / 255).double(), rtol=1e-4, atol=1e-5)
    # The control: bytes read as [-1, 1].
    assert not torch.allclose(out, proxy.net.features(x.float() / 127.5 - 1).double(), rtol=0.01, atol=1e-3)
    assert proxy(x[:0]).shape == (0, DIMENSIONS[name])


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("resnet20", (3, 64, 64), "takes RGB images of 32 x 32 pixels, these are RGB images of 64 x 64"),
        ("resnet20", (1, 32, 32), "RGB images of 32 x 32 pixels, these are grey images of 32 x 32"),
        ("mnist-cnn", (3, 28, 28), "takes grey images of 28 x 28 pixels, these are RGB images of 28 x 28"),
        ("fashion-mlp", (1, 8, 98), "grey images of 28 x 28 pixels, these are grey images of 98 x 8"),
        ("fashion-mlp", (784,), r"these are arrays of shape \(784,\)"),
    ],
)
def test_images_of_another_shape(name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        untrained(name)(noise(2, shape))


def test_images_that_are_no_bytes() -> None:
    with pytest.raises(RecipeError, match=r"takes images as bytes 0\.\.255, these are float32"):
        untrained("mnist-cnn")(torch.rand(2, 1, 28, 28))


def test_names_and_missing_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GENTK_DATA", raising=False)
    with pytest.raises(RecipeError, match="did you mean `resnet20`"):
        proxies.load("resnet-20")
    for name in proxies.names():
        with pytest.raises(MissingAsset, match=f"classifiers/{FILES[name]}.safetensors"):
            proxies.load(name)
        with pytest.raises(MissingAsset, match="no file"):
            proxies.load(name, weights=tmp_path / "absent")


# --- yardsticks of data/README.md section 3 -------------------------------------------------------------------------


def printed(value: float) -> str:
    """`value` with the table's 3 digits."""
    return f"{value:#.3g}".rstrip(".")


@pytest.fixture(scope="module")
def real() -> Callable[[str], tuple[Proxy, DataSet, Callable[[Tensor], str]]]:
    """By the name of a proxy: the proxy, its test set, and the printed distance of features to the training set."""

    def of(name: str) -> tuple[Proxy, DataSet, Callable[[Tensor], str]]:
        with np.load(Path(os.environ["GENTK_DATA"]) / "reference_stats" / f"{FILES[name]}_train.npz") as f:
            train = Moments.known(int(f["n"]), f["mu"], f["sigma"])
        distance = lambda features: printed(frechet(Moments().update(features), train))  # noqa: E731
        return proxies.load(name), load(Data(name=SETS[name]), "test"), distance

    return of


@on_real_data
def test_resnet20(real: Callable) -> None:
    """One pass over the test set: accuracy, the stored statistics, and every row of the table that it answers."""
    proxy, data, fd = real("resnet20")
    features = proxy(data.x)
    assert int((proxy.net.backbone.linear(features.float()).argmax(1) == data.y).sum()) == 9173
    with np.load(Path(os.environ["GENTK_DATA"]) / "reference_stats" / "cifar10_resnet20_test.npz") as f:
        found = Moments().update(features)
        np.testing.assert_allclose(found.mean, f["mu"], rtol=1e-5)
        np.testing.assert_allclose(found.covariance, f["sigma"], atol=1e-5)
    assert fd(features) == "0.0214"
    assert [fd(features[:n]) for n in (5000, 2000, 1000)] == ["0.0314", "0.0868", "0.167"]  # 0.031 and 0.087 there
    assert fd(features[data.y == 0]) == "27.0"  # airplanes alone
    assert proxy.figure == "fd_resnet20"
    assert proxy.facts["weights_sha256"] == PRETRAINED["cifar10_resnet20"].weights.sha256


@on_real_data
def test_resnet20_of_spoilt_images(real: Callable) -> None:
    """2000 images with noise of standard deviation 4, and halved and doubled again."""
    proxy, data, fd = real("resnet20")
    x = data.x[:2000]
    # The table's noise is one stream for its four rows, pixels before channels; the next rows (8: 4.31; 16: 15.9;
    # 32: 37.0) come out of it as well, for ten seconds more.
    added = 4 * torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 32, 32, 3))).permute(0, 3, 1, 2)
    assert fd(proxy((x + added).round().clip(0, 255).byte())) == "1.04"
    small = [
        Image.fromarray(image).resize((16, 16), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BILINEAR)
        for image in x.permute(0, 2, 3, 1).numpy()
    ]
    assert fd(proxy(torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2))) == "14.7"


@on_real_data
@pytest.mark.parametrize(
    ("name", "whole", "parts", "blurred", "other", "uniform"),
    [
        ("mnist-cnn", "0.396", ["0.450", "0.781", "1.02", "1.49"], "22.0", "154", "311"),
        ("fashion-mlp", "0.712", ["1.57", "2.72", "4.12", "11.7"], "142", "595", "869"),
    ],
)
def test_grey_yardsticks(
    name: str, whole: str, parts: list[str], blurred: str, other: str, uniform: str, real: Callable
) -> None:
    proxy, data, fd = real(name)
    features = proxy(data.x)
    assert fd(features) == whole
    # The table's random n: the first ones of torch's permutation of seed 0. Its other rows take the first 2000 images.
    order = torch.randperm(10000, generator=torch.Generator().manual_seed(0))
    assert [fd(features[order[:n]]) for n in (5000, 2000, 1000, 500)] == parts
    assert fd(proxy(F.avg_pool2d(data.x[:2000].float(), 3, stride=1, padding=1).round().byte())) == blurred
    alien = load(Data(name={"mnist": "fashion-mnist", "fashion-mnist": "mnist"}[data.name]), "test")
    assert fd(proxy(alien.x[:2000])) == other
    assert fd(proxy(noise(2000, (1, 28, 28)))) == uniform
    assert proxy.figure == {"mnist-cnn": "fd_mnist_cnn", "fashion-mlp": "fd_fashion_mlp"}[name]
