"""Feature extractors: the identity, and the feature layer of a classifier file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gentk import nets
from gentk.data import to_uint8
from gentk.errors import MissingAsset, RecipeError
from gentk.metrics import proxies
from gentk.metrics.features import extractor
from gentk.nets import weights
from gentk.recipe import schema

CPU = torch.device("cpu")
SHAPE = (1, 8, 8)


def images(n: int) -> torch.Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A classifier with random weights, dropout included, as an exported file."""
    section = schema.SmallCnn(name="small-cnn", width=4, features=6, dropout=0.5)
    torch.manual_seed(0)
    net = nets.build(section, shape=SHAPE, classes=3)
    data = {"name": "digits", "shape": SHAPE, "classes": 3}
    path = tmp_path / "c.safetensors"
    weights.save(path, net, {"kind": "classifier", "net": section.model_dump(mode="json"), "data": data})
    return path


def test_identity_flattens_to_float64() -> None:
    x = images(5)
    out = extractor("identity", shape=SHAPE, where=CPU)(x)
    assert out.dtype == torch.float64
    assert torch.equal(out, x.reshape(5, 64).double())


def test_a_classifier_s_feature_layer_whatever_the_batch(classifier: Path) -> None:
    """Float64 features of the network itself, in eval mode: no dropout, nothing that depends on the batch."""
    x = images(25)
    out = extractor(str(classifier), shape=SHAPE, where=CPU)(x)
    assert out.shape == (25, 6)
    assert out.dtype == torch.float64
    assert not out.requires_grad
    net = nets.build(schema.SmallCnn(name="small-cnn", width=4, features=6), shape=SHAPE, classes=3).eval()
    weights.load_into(net, classifier)
    with torch.no_grad():
        torch.testing.assert_close(out, net.features(x).double(), rtol=1e-5, atol=1e-6)
    for batch in (1, 7, 25):
        small = extractor(str(classifier), shape=SHAPE, where=CPU, batch=batch)(x)
        torch.testing.assert_close(small, out, rtol=1e-5, atol=1e-6)
    assert out.std(0).max() > 1e-3, "features that do not vary would compare equal whatever happens"


def test_samples_of_another_shape(classifier: Path) -> None:
    with pytest.raises(RecipeError, match=r"takes samples of shape \(1, 8, 8\), these have \(3, 8, 8\)") as failure:
        extractor(str(classifier), shape=(3, 8, 8), where=CPU)
    assert "measure.features=identity" in failure.value.hint


def test_what_is_no_classifier(tmp_path: Path) -> None:
    section = schema.Mlp(name="mlp", width=8, blocks=1)
    header = {"kind": "denoiser", "net": section.model_dump(mode="json"), "process": {"name": "ve"}, "predicts": "edm"}
    header |= {"sigma_data": 0.5, "data": {"name": "points:ring8", "shape": (2,), "classes": 0}}
    path = tmp_path / "d.safetensors"
    weights.save(path, nets.build(section, shape=(2,), classes=0), header)
    with pytest.raises(RecipeError, match="is a denoiser, here a classifier is needed"):
        extractor(str(path), shape=(2,), where=CPU)
    with pytest.raises(MissingAsset, match="did you mean `classifier-digits`"):
        extractor("classifier-digit", shape=SHAPE, where=CPU)


@pytest.mark.skipif("GENTK_DATA" not in os.environ, reason="GENTK_DATA is not set: no real data here")
def test_a_proxy_sees_the_images_as_bytes() -> None:
    x = torch.rand(12, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    out = extractor("mnist-cnn", shape=(1, 28, 28), where=CPU)(x)
    assert torch.equal(out, proxies.load("mnist-cnn")(to_uint8(x)))
    with pytest.raises(RecipeError, match=r"mnist-cnn.*\(1, 28, 28\).*\(1, 8, 8\)"):
        extractor("mnist-cnn", shape=SHAPE, where=CPU)
