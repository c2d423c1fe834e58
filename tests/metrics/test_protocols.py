"""Named image protocols against the packages that they are named after, and the traps that they exist for."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections import OrderedDict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fid_peers import admit, images, peer, torchvision_fits, write_weights
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.data import to_uint8
from gentk.errors import GentkError, MissingAsset, RecipeError, RunFailed
from gentk.metrics import protocols
from gentk.metrics.frechet import frechet_of
from gentk.metrics.inception_score import inception_score
from gentk.metrics.kernel import kid
from gentk.metrics.neighbours import precision_recall
from gentk.metrics.protocols import Protocol, protocol
from gentk.nets import inception
from gentk.recipe.weights import digest

N = 6  # images a side: the networks take a quarter of a second for each


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("inception") / "weights.pth")


@pytest.fixture(scope="module")
def real() -> Tensor:
    return images(2 * N)[:N]


@pytest.fixture(scope="module")
def fake() -> Tensor:
    """Other images with noise, so that every distance is far from 0."""
    generator = torch.Generator().manual_seed(0)
    x = images(2 * N)[N:]
    return (x + 20 * torch.randn(x.shape, generator=generator)).clip(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def ours(weights: Path, real: Tensor, fake: Tensor) -> Any:
    """The Inception protocols with random weights, and their features of both sides (legacy: of one)."""
    with pytest.MonkeyPatch.context() as patch:
        admit(patch, "INCEPTION", weights)
        named = {name: protocol(name, weights=weights) for name in ("edm", "clean", "legacy-pytorch")}
    both = torch.cat([real, fake])
    seen = {"edm": both, "clean": both, "legacy-pytorch": real}
    return SimpleNamespace(protocols=named, found={name: named[name].extract(x) for name, x in seen.items()})


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_edm_is_torch_fidelity_and_torchmetrics(ours: Any, weights: Path, real: Tensor, fake: Tensor) -> None:
    """Features and logits to 1e-4; then their formulas on their features against ours on ours, to 0.1 %."""
    inception_of = peer("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    net = inception_of("i", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights))
    with torch.no_grad():
        features, logits = net(torch.cat([real, fake]))
    found, found_logits = ours.found["edm"]
    assert relative(found, features) < 1e-4
    assert relative(found_logits, logits) < 1e-4

    score = peer("torch_fidelity.metric_isc").isc_features_to_metric(logits, splits=2, shuffle=False)
    is_ours = inception_score(found_logits, splits=2)
    assert is_ours.mean - 1 == pytest.approx(score["inception_score_mean"] - 1, rel=1e-3)
    assert is_ours.std == pytest.approx(score["inception_score_std"], rel=1e-3)

    a, b = features[:N], features[N:]
    settings = {"kid_subsets": 1, "kid_subset_size": N, "kid_degree": 3, "verbose": False}
    theirs = peer("torch_fidelity.metric_kid").kid_features_to_metric(a.double(), b.double(), **settings)
    assert kid(found[:N], found[N:], subsets=1, size=N).mean == pytest.approx(
        theirs["kernel_inception_distance_mean"], rel=1e-3
    )

    # Every 16th feature: theirs takes eigenvalues of a matrix that is not symmetric, 20 s for all 2048.
    fid = peer("torch_fidelity.metric_fid")
    statistics = [fid.fid_features_to_statistics(side[:, ::16].double()) for side in (a, b)]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_of(found[:N, ::16], found[N:, ::16]) == pytest.approx(expected, rel=1e-3)

    shares = peer("torch_fidelity.metric_prc").calculate_precision_recall_full(b, a, 3)
    assert precision_recall(found[:N], found[N:], k=3) == pytest.approx(shares)


def test_edm_is_torchmetrics_without_antialias(ours: Any, weights: Path, real: Tensor) -> None:
    """Not torchmetrics as it comes, since 1.8: when enlarging, that is pytorch-fid's resize with the other range."""
    pytest.importorskip("torchmetrics")
    module = peer("torchmetrics.image.fid")
    theirs = {}
    for antialias in (False, True):
        net = module.NoTrainInceptionV3("i", ["2048"], str(weights), antialias)
        theirs[antialias] = net(real[:1])
    edm = ours.found["edm"][0][:1]
    assert relative(edm, theirs[False]) < 1e-4
    assert relative(edm, theirs[True]) > 1e-3
    half_pixel = F.interpolate(real[:1].float(), (299, 299), mode="bilinear")
    with torch.no_grad():
        assert relative(inception.load(weights)((half_pixel - 128) / 128), theirs[True]) < 1e-4


def test_clean_is_clean_fid(ours: Any, weights: Path, real: Tensor, fake: Tensor, tmp_path: Path) -> None:
    """Its resize, its wrapper and its formulas around a TorchScript of the network, the format that it loads."""
    net = inception.load(weights)
    pixels = torch.zeros(1, 3, inception.SIDE, inception.SIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapper = peer("cleanfid.inception_torchscript").InceptionV3W
        scripted = torch.jit.trace(nn.Sequential(OrderedDict(layers=net)), pixels, check_trace=False)
        scripted.save(tmp_path / "inception-2015-12-05.pt")
        theirs = wrapper(str(tmp_path), download=False)
        resize = peer("cleanfid.resize").build_resizer("clean")
        resized = np.stack([resize(image) for image in torch.cat([real, fake]).permute(0, 2, 3, 1).numpy()])
        with torch.no_grad():
            features = theirs(torch.from_numpy(resized).permute(0, 3, 1, 2))
        fid = peer("cleanfid.fid")
        a, b = features[:N].double().numpy(), features[N:].double().numpy()
        kernel = fid.kernel_distance(a, b, num_subsets=1)
        distance = fid.fid_from_feats(a[:, ::16], b[:, ::16])
    found = ours.found["clean"][0]
    assert relative(found, features) < 1e-4
    assert kid(found[:N], found[N:], subsets=1, size=N).mean == pytest.approx(kernel, rel=1e-3)
    assert frechet_of(found[:N, ::16], found[N:, ::16]) == pytest.approx(distance, rel=1e-3)


def test_legacy_is_pytorch_fid(ours: Any, weights: Path, real: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torchvision_fits():
        pytest.skip("torchvision is not installed, whose network pytorch-fid changes into its own")
    module = peer("pytorch_fid.inception")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *_, **__: torch.load(weights, weights_only=True))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        net = module.InceptionV3([3]).eval()
        features = net(real[:4] / 255)[0][:, :, 0, 0]
    assert relative(ours.found["legacy-pytorch"][0][:4], features) < 1e-4


def test_protocols_are_not_each_other(ours: Any) -> None:
    """Resizing alone moves the features a hundred times further than libraries of one protocol differ."""
    edm, clean, legacy = (ours.found[name][0] for name in ("edm", "clean", "legacy-pytorch"))
    for a, b in ((edm, clean), (edm[:N], legacy), (clean[:N], legacy)):
        assert relative(a, b) > 3e-3
    own = frechet_of(edm[:N], edm[N:])
    for mixed in (frechet_of(clean[:N], edm[N:]), frechet_of(legacy, edm[N:])):
        assert mixed != pytest.approx(own, rel=2e-3)


def test_what_stands_beside_a_figure(ours: Any, weights: Path) -> None:
    for name, each in ours.protocols.items():
        assert each.name == name
        assert json.loads(json.dumps(each.facts)) == each.facts
        assert each.facts["weights_sha256"] == digest(weights)
        assert each.facts.keys() == {"extractor", "weights", "weights_sha256", "resize", "range", "formula"}
    assert len({each.facts["resize"] for each in ours.protocols.values()}) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        ours.protocols["edm"].name = "clean"


def test_float64_features_whatever_the_batch(
    ours: Any, weights: Path, real: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit(monkeypatch, "INCEPTION", weights)
    features, logits = ours.found["edm"]
    assert features.dtype == logits.dtype == torch.float64
    assert features.shape == (2 * N, 2048)
    assert logits.shape == (2 * N, 1008)
    one = protocol("edm", weights=weights, batch=1).extract(real[:2])
    assert relative(one[0], features[:2]) < 1e-5
    empty, none = ours.protocols["edm"].extract(real[:0])
    assert (empty.shape, none.shape) == ((0, 2048), (0, 1008))


def test_grey_images_are_repeated(ours: Any, real: Tensor) -> None:
    edm: Protocol = ours.protocols["edm"]
    grey = real[:1, :1]
    assert torch.equal(edm.features(grey), edm.features(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("name", ["edm", "clean", "legacy-pytorch"])
def test_no_range_is_guessed(name: str, ours: Any, real: Tensor) -> None:
    """[0, 1] and [-1, 1] look alike to a network, and 0..255 in floats may have fractions: all are refused."""
    extract = ours.protocols[name].extract
    for wrong in (real / 255, real / 127.5 - 1, real.float(), real.long()):
        with pytest.raises(RunFailed, match=f"`{name}` takes images as bytes .uint8., these are (float32|int64)"):
            extract(wrong)
    for wrong in (real[0], real[:, :2], real.permute(0, 2, 3, 1)):
        with pytest.raises(RunFailed, match=r"expected \(N, 1, H, W\) or \(N, 3, H, W\)"):
            extract(wrong)


def test_truncation_is_another_figure(ours: Any, real: Tensor) -> None:
    """EDM's rule gives each image back; torchmetrics' and DMD2's truncation darkens half of the grey levels by one."""
    samples = real[:2] / 127.5 - 1
    assert torch.equal(to_uint8(samples), real[:2])
    less_than_half_a_level = 0.0039 * (2 * torch.rand(samples.shape, generator=torch.Generator().manual_seed(0)) - 1)
    noisy = (samples + less_than_half_a_level).clip(-1, 1)
    assert torch.equal(to_uint8(noisy), real[:2])
    truncated = ((noisy + 1) / 2 * 255).to(torch.uint8)
    assert 0.4 < (real[:2].float() - truncated.float()).mean() < 0.6
    assert relative(ours.protocols["edm"].features(truncated), ours.found["edm"][0][:2]) > 1e-3


def test_unknown_names() -> None:
    with pytest.raises(RecipeError, match="protocol `clena` is unknown; did you mean `clean`") as failure:
        protocol("clena")
    assert "legacy-pytorch" in failure.value.hint


def test_weights_that_are_not_the_published_ones(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="sha256 6726825d0af5"):
        protocol("edm", weights=weights)
    with pytest.raises(MissingAsset, match="no file"):
        protocol("edm", weights=tmp_path / "absent.pth")


# DINOv2


def test_position_table_of_the_dinov2_repository() -> None:
    """A scale of 16.1 / 37, not a size of 16: on a linear table each patch lies where that scale puts it."""
    axis = torch.arange(37.0)
    table = torch.cat([torch.full((1, 1, 2), -1.0), torch.cartesian_prod(axis, axis)[None]], 1)
    out = protocols.position_table(table, 16)
    assert out.shape == (1, 257, 2)
    assert out[0, 0].tolist() == [-1, -1]
    grid = out[0, 1:].reshape(16, 16, 2)
    expected = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
    # torch's cubic kernel (a = -3/4) bends straight lines by up to 0.05; beyond the border the table does not go on.
    torch.testing.assert_close(grid[2:-2, 5, 0], expected[2:-2], rtol=0, atol=0.06)
    torch.testing.assert_close(grid[5, 2:-2, 1], expected[2:-2], rtol=0, atol=0.06)
    wrong = (torch.arange(16) + 0.5) * 37 / 16 - 0.5
    assert (expected - wrong)[2:-2].abs().max() > 0.15


def tiny_dinov2(path: Path) -> dict[str, Tensor]:
    """Random weights in the published format (with the mask token of the training), 2 blocks of the small size."""
    timm = peer("timm")
    torch.manual_seed(0)
    state = timm.create_model("vit_small_patch14_dinov2", depth=2, num_classes=0).state_dict()
    # A smooth table, as a trained one: how it is interpolated then matters by percents, not altogether.
    rough = torch.randn(1, 384, 5, 5)
    smooth = F.interpolate(rough, (37, 37), mode="bicubic", align_corners=True).permute(0, 2, 3, 1).flatten(1, 2)
    state["pos_embed"][:, 1:] = smooth
    for name, value in state.items():
        if name.endswith("gamma"):
            value.fill_(0.5)  # 1e-5 as they are made, which would hide the blocks
    torch.save(state | {"mask_token": torch.zeros(1, 384)}, path)
    return state


def small(path: Path) -> nn.Module:
    return protocols.dinov2(path, "vit_small_patch14_dinov2", depth=2)


def test_fd_dinov2(tmp_path: Path, real: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dinov2.pth"
    state = tiny_dinov2(path)
    admit(monkeypatch, "DINOV2_VITL14", path)
    monkeypatch.setattr(
        protocols, "dinov2", partial(protocols.dinov2, architecture="vit_small_patch14_dinov2", depth=2)
    )
    dino = protocol("fd-dinov2", weights=path)
    features, logits = dino.extract(real[:3])
    assert logits is None
    assert (features.shape, features.dtype) == ((3, 384), torch.float64)
    assert dino.facts["weights_sha256"] == digest(path)
    # The class token after the last norm: mean 0 and variance 1 over its entries, as the norm has no slope yet.
    torch.testing.assert_close(features.mean(1), torch.zeros(3).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(features.var(1, correction=0), torch.ones(3).double(), rtol=0, atol=1e-3)
    assert torch.equal(dino.features(real[:1, :1]), dino.features(real[:1, :1].expand(-1, 3, -1, -1)))
    with pytest.raises(RunFailed, match="takes images as bytes"):
        dino.extract(real / 255)
    # timm's own interpolation of the table is another feature space.
    net = protocols.dinov2(path)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = peer("timm").create_model("vit_small_patch14_dinov2", depth=2, num_classes=0, dynamic_img_size=True)
        theirs.load_state_dict(state)
        assert 1e-4 < relative(net(x), theirs.eval()(x)) < 0.1


def test_the_large_dinov2_has_the_published_layout() -> None:
    """343 tensors of 304,368,640 numbers with the mask token."""
    timm = peer("timm")
    with torch.device("meta"):
        state = timm.create_model("vit_large_patch14_dinov2", num_classes=0).state_dict()
    assert len(state) + 1 == 343
    assert sum(value.numel() for value in state.values()) + 1024 == 304_368_640
    assert state["pos_embed"].shape == (1, 1 + 37**2, 1024)


def test_other_files_are_no_dinov2(tmp_path: Path) -> None:
    path = tmp_path / "dinov2.pth"
    tiny_dinov2(path)
    with pytest.raises(GentkError, match="does not hold vit_large_patch14_dinov2"):
        protocols.dinov2(path)
    torch.save([1], path)
    with pytest.raises(GentkError, match="does not hold"):
        small(path)
    path.write_bytes(b"text")
    with pytest.raises(GentkError, match="cannot be read as a state dict"):
        small(path)


def test_without_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dinov2.pth"
    path.write_bytes(b"any")
    admit(monkeypatch, "DINOV2_VITL14", path)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingAsset, match="timm cannot be imported") as failure:
        protocol("fd-dinov2", weights=path)
    assert "gentk[eval]" in failure.value.hint
