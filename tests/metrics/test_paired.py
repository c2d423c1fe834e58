"""PSNR, SSIM and LPIPS against closed forms and the libraries of the field."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from gentk.errors import GentkError, RunFailed
from gentk.metrics import paired, states
from gentk.metrics.paired import Lpips, lpips, psnr, ssim

SHARED = os.environ.get("GENTK_DATA")
HEADS = Path(SHARED or "") / "lpips" / "lpips_v0.1_heads.safetensors"
on_real_data = pytest.mark.skipif(not SHARED, reason="GENTK_DATA is not set: no LPIPS heads here")
CPU = torch.device("cpu")
NETS = ("alex", "vgg")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_known_errors() -> None:
    x = torch.full((3, 3, 8, 8), 100, dtype=torch.uint8)
    y = x.clone()
    y[0] += 10
    y[1, :, :4] += 20  # half of the pixels: mean square 200
    values = psnr(x, y, data_range=255)
    assert values.dtype == torch.float64
    expected = [20 * math.log10(255 / 10), 10 * math.log10(255**2 / 200), math.inf]
    assert values.tolist() == pytest.approx(expected, rel=1e-12)
    # uint8 differences must not wrap around, and the order must not matter.
    assert psnr(y, x, data_range=255).tolist() == values.tolist()
    # The same pictures in another range are the same pictures.
    torch.testing.assert_close(psnr(x / 127.5 - 1, y / 127.5 - 1, data_range=2)[:2], values[:2], rtol=1e-5, atol=0)


def test_the_mean_over_pictures_is_not_that_of_the_pooled_error() -> None:
    x = noise(2, 3, 16, 16).double()
    y = x.clone()
    y[0] += 0.1
    y[1] += 0.001
    values = psnr(x, y, data_range=1.2)
    assert values.tolist() == pytest.approx([20 * math.log10(12), 20 * math.log10(1200)], rel=1e-9)
    pooled = 10 * math.log10(1.2**2 / (x - y).square().mean().item())
    assert values.mean().item() - pooled > 15  # 41.6 and 24.6 dB


@pytest.mark.parametrize("channels", [1, 3])
def test_those_of_scikit_image(channels: int) -> None:
    measure = pytest.importorskip("skimage.metrics")
    for i, (x, y) in enumerate(pairs(channels)):
        a, b = x[0].numpy(), y[0].numpy()
        expected = measure.peak_signal_noise_ratio(a, b, data_range=1)
        assert psnr(x, y, data_range=1).item() == pytest.approx(expected, rel=1e-12)
        expected = measure.structural_similarity(
            a, b, data_range=1, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(x, y, data_range=1).item() == pytest.approx(expected, abs=1e-12), i


def test_those_of_torchmetrics_but_for_the_borders_of_ssim() -> None:
    image = pytest.importorskip("torchmetrics.functional.image")
    x, y = (torch.cat(each) for each in zip(*pairs(3), strict=True))
    theirs = image.peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(psnr(x, y, data_range=1), theirs, rtol=1e-6, atol=0)  # its logarithm of 10 is float32
    theirs = image.structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    padded = (torch.nn.functional.pad(v, (5, 5, 5, 5), mode="reflect") for v in (x, y))
    torch.testing.assert_close(ssim(*padded, data_range=1), theirs, rtol=1e-12, atol=0)
    assert (ssim(x, y, data_range=1) - theirs).abs().max() > 1e-4  # what the borders make, here


def pairs(channels: int) -> list[tuple[Tensor, Tensor]]:
    """Pictures with more and more noise."""
    x = noise(3, channels, 40, 37).double()
    y = (
        x + torch.tensor([0.1, 0.3, 0.9]).view(3, 1, 1, 1) * (noise(3, channels, 40, 37, seed=1).double() - 0.5)
    ).clamp(0, 1)
    return [(x[i : i + 1], y[i : i + 1]) for i in range(3)]


def test_ssim_in_closed_form() -> None:
    # Constant pictures: only the means count, (2 a b + c) / (a^2 + b^2 + c) with c = (0.01 range)^2.
    a, b, c = 60.0, 90.0, 2.55**2
    x, y = (torch.full((2, 3, 20, 20), v) for v in (a, b))
    expected = (2 * a * b + c) / (a**2 + b**2 + c)
    assert ssim(x, y, data_range=255).tolist() == pytest.approx([expected] * 2, rel=1e-9)
    assert ssim(x, x, data_range=255).tolist() == pytest.approx([1, 1], rel=1e-9)
    # A negative has the correlation -1: with equal means of 1/2, (c - 2 v) / (c + 2 v) at each position.
    x = noise(1, 1, 11, 11).double()
    x = x - window_mean(x) + 0.5
    v = window_mean(x**2) - 0.25
    assert ssim(x, 1 - x, data_range=2).item() == pytest.approx((0.06**2 - 2 * v) / (0.06**2 + 2 * v), rel=1e-9)
    # The control: with another range than the pictures', it is another figure.
    assert ssim(x, 1 - x, data_range=4).item() != pytest.approx((0.06**2 - 2 * v) / (0.06**2 + 2 * v), rel=1e-3)


def window_mean(x: Tensor) -> float:
    """The Gaussian mean of one picture of 11 x 11."""
    w = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    return float((np.outer(w, w) / w.sum() ** 2 * x[0, 0].numpy()).sum())


def test_gradients_as_losses() -> None:
    x, y = noise(1, 3, 16, 16).double().requires_grad_(), noise(1, 3, 16, 16, seed=1).double()
    assert torch.autograd.gradcheck(lambda x: psnr(x, y, data_range=1), x)
    assert torch.autograd.gradcheck(lambda x: ssim(x, y, data_range=1), x)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_refusals(metric: object) -> None:
    assert callable(metric)
    x = noise(1, 3, 16, 16)
    for a, b, data_range, match in (
        (x, x[..., 1:], 1, "shape"),
        (x[0], x[0], 1, "shape"),
        (255 * x, 255 * x, 1, "data_range 1"),
        (x, 2 * x - 1, 1, "data_range 1"),
        (x.where(x > 0.5, torch.nan), x, 1, "nan"),
    ):
        with pytest.raises(RunFailed, match=match):
            metric(a, b, data_range=data_range)
    with pytest.raises(RunFailed, match="11 x 11"):
        ssim(noise(1, 3, 10, 16), noise(1, 3, 10, 16), data_range=1)


# LPIPS


def random_trunk(net: str, path: Path) -> Path:
    """A file like torchvision's, of random weights; its classifier is there, too, and must be passed over."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = Lpips(net).features
    state = {f"features.{k}": v for k, v in features.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, path)
    return path


def random_heads(net: str, path: Path) -> Path:
    state = {f"lin{i}.model.1.weight": noise(1, len(head), 1, 1, seed=i) for i, head in enumerate(Lpips(net).heads)}
    torch.save(state, path)
    return path


@pytest.fixture
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Lpips:
    net = request.param
    # Not .pth: that is the published format, and would be held to the published checksum.
    trunk, heads = random_trunk(net, tmp_path / "trunk.bin"), random_heads(net, tmp_path / "heads.bin")
    return lpips(net, trunk=trunk, heads=heads, where=CPU, offline=True)


@pytest.mark.parametrize("built", NETS, indirect=True)
def test_lpips_is_a_distance_with_gradient(built: Lpips) -> None:
    x, y = 2 * noise(2, 3, 40, 40) - 1, 2 * noise(2, 3, 40, 40, seed=1) - 1
    there, back = built(x, y), built(y, x)
    assert there.shape == (2,)
    torch.testing.assert_close(there, back)
    assert (there > 0).all()
    assert (built(x, x) == 0).all()
    torch.testing.assert_close(built(x[1:], y[1:])[0], there[1])
    x.requires_grad_()
    (grad,) = torch.autograd.grad(built(x, y).sum(), x)
    assert grad.isfinite().all()
    assert (grad != 0).any((1, 2, 3)).all()
    assert not any(p.requires_grad for p in built.parameters())


def test_no_nan_in_the_gradient_where_no_feature_is_active(tmp_path: Path) -> None:
    path = random_trunk("alex", tmp_path / "trunk.bin")
    state = torch.load(path)
    state["features.0.bias"] -= 100  # nothing passes the first ReLU
    torch.save(state, path)
    distance = lpips("alex", trunk=path, heads=random_heads("alex", tmp_path / "heads.bin"), where=CPU)
    x = (2 * noise(1, 3, 40, 40) - 1).requires_grad_()
    (grad,) = torch.autograd.grad(distance(x, torch.zeros_like(x)).sum(), x)
    assert grad.isfinite().all()


@on_real_data
@pytest.mark.parametrize("net", NETS)
def test_the_published_heads_in_both_libraries(net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    functional = pytest.importorskip("torchmetrics.functional.image.lpips")
    pytest.importorskip("torchvision")
    trunk = random_trunk(net, tmp_path / "trunk.bin")
    ours = lpips(net, trunk=trunk, heads=HEADS, where=CPU, offline=True)
    theirs = functional._LPIPS(pretrained=True, net=net, pnet_rand=True)  # it carries the heads, and no trunk
    for i, head in enumerate(ours.heads):
        torch.testing.assert_close(getattr(theirs, f"lin{i}").model[1].weight.flatten(), head, rtol=0, atol=0)
    features(theirs.net, ours.features)
    x, y = 2 * noise(4, 3, 64, 64) - 1, 2 * noise(4, 3, 64, 64, seed=1) - 1
    expected = theirs(x, y).flatten().detach()
    torch.testing.assert_close(ours(x, y), expected, rtol=1e-5, atol=0)
    # The controls: pictures in [0, 1], which is what torchmetrics takes with normalize=True; uncalibrated heads.
    assert not torch.allclose(ours((x + 1) / 2, (y + 1) / 2), expected, rtol=0.01)
    for head in ours.heads:
        head.data.fill_(head.mean())
    assert not torch.allclose(ours(x, y), expected, rtol=0.01)


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained':UserWarning")
@pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning")
@pytest.mark.parametrize("net", NETS)
def test_the_authors_package(net: str, tmp_path: Path) -> None:
    package = pytest.importorskip("lpips")
    trunk = random_trunk(net, tmp_path / "trunk.bin")
    theirs = package.LPIPS(net=net, pnet_rand=True, verbose=False, version="0.1")
    torch.save(
        {k: v for k, v in theirs.state_dict().items() if k[:4].startswith("lin") and k[3].isdigit()},
        tmp_path / "heads.bin",
    )
    ours = lpips(net, trunk=trunk, heads=tmp_path / "heads.bin", where=CPU, offline=True)
    features(theirs.net, ours.features)
    x, y = 2 * noise(2, 3, 64, 64) - 1, 2 * noise(2, 3, 64, 64, seed=1) - 1
    torch.testing.assert_close(ours(x, y), theirs(x, y).flatten().detach(), rtol=1e-5, atol=0)


def features(theirs: nn.Module, ours: nn.Sequential) -> None:
    """Copies our trunk into a library's, layer by layer in order."""
    convolutions = [[m for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (theirs, ours)]
    for to, of in zip(*convolutions, strict=True):
        to.load_state_dict(of.state_dict())


@pytest.mark.parametrize("net", NETS)
def test_trunks_are_those_of_torchvision(net: str) -> None:
    models = pytest.importorskip("torchvision.models")
    reference = (models.alexnet if net == "alex" else models.vgg16)(weights=None).features
    own = Lpips(net).features
    assert {k: v.shape for k, v in own.state_dict().items()} == {k: v.shape for k, v in reference.state_dict().items()}
    own.load_state_dict(reference.state_dict())
    x = noise(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(own(x), reference[: len(own)](x), rtol=0, atol=0)
    assert all(isinstance(own[i], nn.ReLU) for i in Lpips(net).taps)
    assert Lpips(net).taps[-1] == len(own) - 1


def test_heads_come_with_torchmetrics(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    for net in NETS:
        path = paired._shipped(net)
        assert path is not None
        # The published checksum is that of this file.
        trunk = random_trunk(net, tmp_path / f"{net}.bin")
        distance = lpips(net, trunk=trunk, where=CPU, offline=True)
        first = states.read(path)["lin0.model.1.weight"].flatten()
        torch.testing.assert_close(distance.heads[0].data, first, rtol=0, atol=0)


def test_lpips_refuses_other_files_and_pictures(tmp_path: Path) -> None:
    trunk, heads = random_trunk("alex", tmp_path / "a.bin"), random_heads("alex", tmp_path / "h.bin")
    with pytest.raises(GentkError, match="another network"):
        lpips("vgg", trunk=trunk, heads=heads, where=CPU)
    vgg = random_trunk("vgg", tmp_path / "v.bin")
    with pytest.raises(GentkError, match=r"not the LPIPS heads of `vgg`"):
        lpips("vgg", trunk=vgg, heads=heads, where=CPU)
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(GentkError, match="missing"):
        lpips("alex", trunk=tmp_path / "x.safetensors", heads=heads, where=CPU)
    distance = lpips("alex", trunk=trunk, heads=heads, where=CPU)
    x = noise(1, 3, 40, 40)
    for a, b, match in (
        (255 * x, x, "to 25"),
        (x, x.where(x > 0.5, torch.nan), "nan"),
        (x, x[..., 1:], "twice"),
        (x[:, :1], x[:, :1], "twice"),
        ((255 * x).to(torch.uint8), x, "uint8"),
    ):
        with pytest.raises(RunFailed, match=match):
            distance(a, b)
