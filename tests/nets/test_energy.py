"""Energies: shapes, the sign, what they must not depend on, their tails, and the published one."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gentk.errors import MissingAsset, RecipeError
from gentk.nets import energy, weights
from gentk.nets.energy import Energy
from gentk.nets.published_energy import MnistEbm
from gentk.processes.energies import load_energy
from gentk.recipe.networks import EnergyConv, EnergyMlp, EnergyUNet

MLP = EnergyMlp(name="energy-mlp", width=16, depth=2)
CONV = EnergyConv(name="energy-conv", width=8, multipliers=(1, 2))
UNET = EnergyUNet(name="energy-unet", width=8, multipliers=(1, 2))
LEVELS = (0.05, 4.0)
KINDS = [
    (MLP, (2,), None),
    (MLP, (3,), LEVELS),
    (EnergyMlp(name="energy-mlp", width=16, depth=2, spectral=True), (2,), None),
    (CONV, (1, 8, 8), None),
    (CONV, (3, 8, 8), LEVELS),
    (EnergyConv(name="energy-conv", width=8, spectral=True), (1, 8, 8), LEVELS),
    (UNET, (1, 8, 8), LEVELS),
]


def make(section: Any, shape: tuple[int, ...], levels: Any = None, seed: int = 0) -> Energy:
    """An energy in eval mode whose every parameter is random, with centre and scale of some data."""
    torch.manual_seed(seed)
    data = 0.7 * torch.randn(200, *shape) + 0.3
    net = energy.build(section, shape=shape, levels=levels, data=data)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return net.eval()


@pytest.mark.parametrize(("section", "shape", "levels"), KINDS)
def test_one_number_for_each_sample_by_itself(section: Any, shape: tuple[int, ...], levels: Any) -> None:
    """T13: alone or in a batch, train or eval (spectral norm's power iteration apart), one t or one for each."""
    net = make(section, shape, levels)
    x = torch.randn(5, *shape)
    together = net(x)
    assert together.shape == (5,)
    alone = torch.cat([net(x[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    if not getattr(section, "spectral", False):
        assert torch.equal(net.train()(x), together)
        net.eval()
    if levels:
        assert torch.equal(net(x), net(x, levels[0]))
        t = torch.tensor([0.05, 0.1, 0.5, 2.0, 4.0])
        each = torch.cat([net(x[i : i + 1], t[i]) for i in range(5)])
        torch.testing.assert_close(net(x, t), each, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(net(x, 1.0), together)
    else:
        with pytest.raises(ValueError, match="no noise level"):
            net(x, 0.5)


def test_batch_norm_would_be_found() -> None:
    """The control of the test above: a body with batch norm depends on its neighbours."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(2), nn.Linear(2, 1)

        def forward(self, h: Tensor, s: Tensor | None) -> Tensor:
            return self.out(self.norm(h))[:, 0]

    net = Energy(Normed(), centre=torch.zeros(2), sd=1.0, tail=10.0, levels=None).train()
    x = torch.randn(6, 2)
    assert not torch.allclose(net(x)[:3], net(x[:3]), rtol=1e-3)


@pytest.mark.parametrize(("section", "shape", "levels"), KINDS)
def test_the_energy_grows_along_every_ray(section: Any, shape: tuple[int, ...], levels: Any) -> None:
    """T15: from 30 to 300 standard deviations a coordinate, along 20 random rays, it increases: chains come back."""
    net = make(section, shape, levels)
    ray = torch.randn(20, *shape)
    ray = ray / ray.flatten(1).square().mean(1).sqrt().reshape(-1, *(1,) * len(shape))
    values = torch.stack([net(net.centre + r * float(net.sd) * ray) for r in (30.0, 100.0, 300.0)])
    assert bool((values.diff(dim=0) > 0).all())


def test_without_its_tail_a_network_can_fall_for_ever() -> None:
    """The control of the test above: the same network, tail taken away, sinks along some ray."""
    net = make(MLP.model_copy(update={"tail": None}), (2,))
    ray = torch.nn.functional.normalize(torch.randn(20, 2))
    fall = net(300 * ray) - net(30 * ray)
    assert bool((fall < 0).any())


def test_the_tail_is_the_stated_gaussian() -> None:
    """With a body of zero it is |x - c|^2 / (2 ((10 sd)^2 + t^2)), and -grad U points to the centre (T7)."""
    body = Silent()
    for levels, t in ((None, None), (LEVELS, 3.0)):
        net = Energy(body, centre=torch.tensor([1.0, -1.0]), sd=0.5, tail=10.0, levels=levels)
        x = torch.randn(7, 2)
        away = x - torch.tensor([1.0, -1.0])
        variance = 25.0 + (t or 0.0) ** 2
        torch.testing.assert_close(net(x, t), away.square().sum(1) / (2 * variance))
        torch.testing.assert_close(net.score(x, t), -away / variance)
    net.offset.fill_(2.0)
    torch.testing.assert_close(net(x, t), away.square().sum(1) / (2 * variance) - 2)


class Silent(nn.Module):
    """A body that says nothing."""

    def forward(self, h: Tensor, s: Tensor | None) -> Tensor:
        return h.new_zeros(len(h))


@pytest.mark.parametrize(("section", "shape", "levels"), KINDS)
def test_forces_are_smooth(section: Any, shape: tuple[int, ...], levels: Any) -> None:
    """T14: the gradient's change halves with the step, where that of a piecewise linear network jumps or is zero."""
    net = make(section, shape, levels).double()
    x, v = torch.randn(4, *shape, dtype=torch.float64), torch.randn(4, *shape, dtype=torch.float64)

    def change(step: float) -> Tensor:
        return (net.score(x + step * v) - net.score(x)).flatten(1).norm(dim=1)

    ratio = change(1e-4) / change(5e-5)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0), rtol=1e-2, atol=0)


def test_spectral_norm_bounds_each_layer() -> None:
    """After some power iterations every layer has norm 1; plain layers do not."""
    net = energy.build(EnergyMlp(name="energy-mlp", width=32, spectral=True), shape=(2,))
    for _ in range(50):
        net(torch.randn(4, 2))
    layers = [m.weight.detach() for m in net.modules() if isinstance(m, nn.Linear)]
    norms = [float(torch.linalg.matrix_norm(w, 2)) for w in layers]
    assert norms == pytest.approx([1.0] * 4, rel=1e-2)
    plain = energy.build(EnergyMlp(name="energy-mlp", width=32), shape=(2,))
    free = [float(torch.linalg.matrix_norm(m.weight.detach(), 2)) for m in plain.modules() if isinstance(m, nn.Linear)]
    assert max(abs(norm - 1) for norm in free) > 0.05


def test_the_unet_s_energy_is_the_distance_to_its_denoiser() -> None:
    """<x - c, x - c - D> / 2t^2 with EDM's preconditioning written out; with F = 0 it is N(c, sd^2 + t^2)."""
    net = make(UNET, (1, 8, 8), LEVELS).double()
    x, sd = torch.randn(5, 1, 8, 8, dtype=torch.float64), float(net.sd)
    t = torch.tensor([0.05, 0.2, 1.0, 2.0, 4.0], dtype=torch.float64)
    n = (sd**2 + t**2).sqrt().reshape(-1, 1, 1, 1)
    s = t.reshape(-1, 1, 1, 1)
    away = x - net.centre
    f = net.body.net(away / n, (t / sd).log() / 4)  # type: ignore[union-attr,operator]
    denoised = sd**2 / n**2 * away + s * sd / n * f
    expected = (away * (away - denoised)).flatten(1).sum(1) / (2 * t**2)
    torch.testing.assert_close(net(x, t), expected)
    fresh = energy.build(UNET, shape=(1, 8, 8), levels=LEVELS)
    torch.testing.assert_close(fresh(x.float(), 2.0), (x.square().flatten(1).sum(1) / (2 * 5)).float())


def test_centre_and_scale_come_from_the_data() -> None:
    data = torch.stack([torch.randn(4000) + 5, 3 * torch.randn(4000)], 1)
    net = energy.build(MLP, shape=(2,), data=data)
    torch.testing.assert_close(net.centre, data.mean(0))
    assert float(net.sd) == pytest.approx(math.sqrt(5), rel=0.05)
    with pytest.raises(RecipeError, match="all samples are the same"):
        energy.build(MLP, shape=(2,), data=torch.ones(10, 2))


@pytest.mark.parametrize(
    ("section", "shape", "levels", "message"),
    [
        (MLP, (1, 8, 8), None, "takes points"),
        (CONV, (2,), None, "takes square images"),
        (CONV, (1, 9, 9), None, "divisible by 2"),
        (UNET, (1, 8, 8), None, "energy of noised data"),
        (UNET.model_copy(update={"attention": (5,)}), (1, 8, 8), LEVELS, "no level has a side of 5"),
    ],
)
def test_what_does_not_fit_is_said(section: Any, shape: tuple[int, ...], levels: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        energy.build(section, shape=shape, levels=levels)


@pytest.mark.parametrize(("section", "shape", "levels"), KINDS)
def test_a_file_gives_the_energy_back(tmp_path: Path, section: Any, shape: tuple[int, ...], levels: Any) -> None:
    net = make(section, shape, levels)
    net.offset.fill_(1.5)
    path = tmp_path / "energy.safetensors"
    header = {
        "kind": "energy",
        "net": section.model_dump(mode="json"),
        "levels": None if levels is None else [4.0, 0.5, 0.05],
        "data": {"name": "x", "shape": shape, "classes": 0},
    }
    weights.save(path, net, header)
    model = load_energy(str(path))
    x = torch.randn(3, *shape)
    assert torch.equal(model.net(x), net(x))
    assert model.net.levels == levels
    assert not any(p.requires_grad for p in model.net.parameters())
    assert model.shape == shape


# --- the published one ------------------------------------------------------------------------------------------------

DATA = os.environ.get("GENTK_DATA")


def test_the_published_energy_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENTK_DATA", raising=False)
    with pytest.raises(MissingAsset, match="generative/mnist_ebm"):
        load_energy("mnist_ebm")
    with pytest.raises(ValueError, match="no noise level"):
        MnistEbm()(torch.zeros(1, 1, 28, 28), 0.5)


def images(root: Path, folder: str) -> Tensor:
    with gzip.open(root / folder / "t10k-images-idx3-ubyte.gz") as file:
        raw = np.frombuffer(file.read(), np.uint8)[16:].reshape(-1, 1, 28, 28)[:1000]
    return torch.from_numpy(raw.copy()).float() / 127.5 - 1


@pytest.mark.skipif(not DATA, reason="needs $GENTK_DATA with generative/ and mnist/")
def test_the_published_energy_orders_what_it_has_not_seen() -> None:
    """Means over 1000 images as the data's README measured them; noise is drawn anew, so its rows have a tolerance."""
    assert DATA is not None
    root, net = Path(DATA), load_energy("mnist_ebm").net
    digits, gen = images(root, "mnist"), torch.Generator().manual_seed(0)
    sets = {
        "digits": digits,
        "upside down": digits.flip(2),
        "noisy": (digits + 0.6 * torch.randn(digits.shape, generator=gen)).clamp(-1, 1),  # 0.3 in [0, 1]
        "fashion": images(root, "fashion_mnist"),
        "uniform": 2 * torch.rand(digits.shape, generator=gen) - 1,
    }
    mean = {name: float(net(x).mean()) for name, x in sets.items()}
    assert mean["digits"] == pytest.approx(0.000, abs=0.002)
    assert mean["upside down"] == pytest.approx(0.014, abs=0.002)
    assert mean["noisy"] == pytest.approx(1.48, abs=0.05)
    assert mean["fashion"] == pytest.approx(2.74, abs=0.02)
    assert mean["uniform"] == pytest.approx(17.9, abs=0.2)
    assert list(mean.values()) == sorted(mean.values())
    unclipped = digits + 0.6 * torch.randn(digits.shape, generator=gen)
    assert float(net(unclipped).mean()) < 0.02, "it has learned the edge of the box, not the noise: T16"
