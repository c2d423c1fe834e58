"""Networks: shapes, labels, gradients, and what their output must not depend on."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from gentk import nets
from gentk.errors import RecipeError
from gentk.nets.unet import Attention, UNet, frequencies
from gentk.processes.models import fast_layout
from gentk.recipe import schema

UNET = schema.UNet(name="unet", width=16, multipliers=(1, 2), attention=(8,), dropout=0.5)
MLP = schema.Mlp(name="mlp", width=16, blocks=2)
CNN = schema.SmallCnn(name="small-cnn", width=8, features=12, dropout=0.5)
DENOISERS = [(UNET, (1, 8, 8)), (UNET, (3, 16, 16)), (MLP, (2,)), (MLP, (5,))]


def make(section: Any, shape: tuple[int, ...], classes: int, seed: int = 0) -> nn.Module:
    """A network in eval mode whose every parameter is random: an untrained one's output would be zero."""
    torch.manual_seed(seed)
    net = nets.build(section, shape=shape, classes=classes)
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=gen))
    return net.eval()


def inputs(n: int, shape: tuple[int, ...], classes: int) -> tuple[Tensor, Tensor, Tensor | None]:
    gen = torch.Generator().manual_seed(1)
    x, c_noise = torch.randn(n, *shape, generator=gen), torch.linspace(-1.5, 1.1, n)  # ln(0.002) / 4 to ln(80) / 4
    return x, c_noise, torch.arange(n) % classes if classes else None


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "channels", "multipliers", "attention"),
    [
        (8, 1, (1, 2), ()),
        (8, 3, (1,), (8,)),
        (12, 1, (1, 1, 2), (3, 6)),
        (16, 3, (1, 2, 2), (4,)),
        (28, 1, (1, 2, 2), (7,)),
        (32, 3, (1, 2, 2, 2), (16, 4)),
        (64, 4, (1, 1, 2, 2), (8,)),
    ],
)
def test_unet_keeps_the_shape(
    size: int, channels: int, multipliers: tuple[int, ...], attention: tuple[int, ...]
) -> None:
    section = schema.UNet(name="unet", width=8, multipliers=multipliers, attention=attention, blocks=2)
    net = make(section, (channels, size, size), 3)
    with torch.no_grad():
        out = net(*inputs(2, (channels, size, size), 3))
    assert out.shape == (2, channels, size, size)
    assert out.isfinite().all()
    assert sum(isinstance(m, Attention) for m in net.modules()) > 0 or not attention


@pytest.mark.parametrize("size", [8, 9, 16, 17, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_classifier_takes_any_side(size: int, channels: int) -> None:
    net = make(CNN, (channels, size, size), 7)
    x = inputs(3, (channels, size, size), 0)[0]
    with torch.no_grad():
        features, logits = net.features(x), net(x)
    assert features.shape == (3, 12)
    assert (features >= 0).all()
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits, net.head(features))


@pytest.mark.parametrize(("section", "shape"), DENOISERS)
def test_an_untrained_denoiser_says_nothing(section: Any, shape: tuple[int, ...]) -> None:
    """The last layer starts at 0, so that EDM's preconditioned denoiser starts as its skip path."""
    net = nets.build(section, shape=shape, classes=3).eval()
    with torch.no_grad():
        out = net(*inputs(4, shape, 3))
    bias = net.out.bias.detach().reshape(-1, *(1,) * (len(shape) - 1)).expand(shape)
    torch.testing.assert_close(out, bias.expand_as(out))


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("section", "shape"), DENOISERS)
def test_no_label_is_the_row_after_the_last_class(section: Any, shape: tuple[int, ...]) -> None:
    net = make(section, shape, 3)
    x, c_noise, _ = inputs(4, shape, 0)
    rows = [torch.full((4,), k) for k in range(4)]
    with torch.no_grad():
        outs = [net(x, c_noise, row) for row in rows]
        assert torch.equal(net(x, c_noise, None), outs[3])
        for i in range(4):
            assert all((outs[i] - outs[j]).abs().max() > 1e-3 for j in range(i)), "two labels do the same"
        mixed = net(x, c_noise, torch.tensor([2, 0, 3, 1]))
    for sample, label in enumerate((2, 0, 3, 1)):
        torch.testing.assert_close(mixed[sample], outs[label][sample], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("section", "shape"), DENOISERS)
def test_without_classes_there_is_no_embedding(section: Any, shape: tuple[int, ...]) -> None:
    net = make(section, shape, 0)
    assert net.label is None
    assert not any(isinstance(m, nn.Embedding) for m in net.modules())


@pytest.mark.parametrize(("section", "shape"), DENOISERS)
def test_the_noise_level_matters(section: Any, shape: tuple[int, ...]) -> None:
    net = make(section, shape, 0)
    x, c_noise, _ = inputs(4, shape, 0)
    with torch.no_grad():
        assert (net(x, c_noise) - net(x, c_noise + 0.02)).flatten(1).abs().amax(1).min() > 1e-4


def test_frequencies_tell_close_levels_apart() -> None:
    """cos and sin of geometric frequencies from 1 to 100: unit norm per pair; EDM's labels a percent of sigma apart."""
    label = torch.linspace(-1.5, 1.1, 50, dtype=torch.float64)
    out = frequencies(label, 16)
    assert out.shape == (50, 16)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out[:, :8] ** 2 + out[:, 8:] ** 2, torch.ones(50, 8, dtype=torch.float64))
    torch.testing.assert_close(out[:, 0], label.cos())
    torch.testing.assert_close(out[:, 15], (100 * label).sin())
    assert (frequencies(label + 0.0025, 16) - out).norm(dim=1).min() > 0.1  # ln(1.01) / 4


# --- gradients and invariances ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("section", "shape"), DENOISERS)
def test_a_gradient_reaches_every_parameter(section: Any, shape: tuple[int, ...]) -> None:
    net = make(section, shape, 3)
    x, c_noise, _ = inputs(8, shape, 0)
    net(x, c_noise, torch.arange(8) % 4).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 1e-6, name
    assert (net.label.weight.grad.abs().amax(1) > 1e-6).all(), "a label row, or that of no label, learns nothing"


def test_a_gradient_reaches_every_parameter_of_the_classifier() -> None:
    net = make(CNN, (1, 32, 32), 4)
    net(inputs(8, (1, 32, 32), 0)[0]).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize(("section", "shape"), [*DENOISERS, (CNN, (3, 16, 16))])
def test_a_sample_knows_nothing_of_the_others(section: Any, shape: tuple[int, ...]) -> None:
    """No batch statistics: output i is the same beside other samples, alone, and in another order. Rounding only."""
    net = make(section, shape, 3)
    x, c_noise, cond = inputs(6, shape, 3)
    args = [(x, c_noise, cond)] if section is not CNN else [(x,)]
    with torch.no_grad():
        (whole,) = (net(*a) for a in args)
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        shuffled = net(*(part[order] for part in args[0]))
        torch.testing.assert_close(shuffled, whole[order], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(net(*(part[2:3] for part in args[0])), whole[2:3], rtol=1e-5, atol=1e-5)
        louder = x.clone()
        louder[0] *= 100
        others = net(louder, *args[0][1:])
        torch.testing.assert_close(others[1:], whole[1:], rtol=1e-5, atol=1e-5)
        assert (others[0] - whole[0]).abs().max() > 1e-2


@pytest.mark.parametrize(("section", "shape"), [(UNET, (3, 16, 16)), (CNN, (3, 16, 16))])
def test_channels_last_is_the_same_function(section: Any, shape: tuple[int, ...]) -> None:
    net = make(section, shape, 3)
    x, c_noise, cond = inputs(4, shape, 3)
    args = (x, c_noise, cond) if section is UNET else (x,)
    with torch.no_grad():
        plain = net(*args)
        fast_layout(net)
        assert any(p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) for p in net.parameters())
        torch.testing.assert_close(net(*args), plain, rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_train_mode_alone() -> None:
    net = make(UNET, (1, 8, 8), 0)
    args = inputs(4, (1, 8, 8), 0)
    with torch.no_grad():
        assert torch.equal(net(*args), net(*args))
        net.train()
        assert not torch.equal(net(*args), net(*args))


@pytest.mark.parametrize("channels", [8, 24, 32, 48, 64, 96, 112])
def test_attention_sees_every_pixel_and_no_order(channels: int) -> None:
    """Self-attention permutes with its pixels, and each output pixel depends on each input pixel."""
    torch.manual_seed(0)
    layer = Attention(channels)
    with torch.no_grad():
        nn.init.normal_(layer.proj.weight, std=0.3)
        x = torch.randn(2, channels, 3, 3, generator=torch.Generator().manual_seed(0))
        order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
        moved = x.flatten(2)[:, :, order].reshape(x.shape)
        want = layer(x).flatten(2)[:, :, order].reshape(x.shape)
        torch.testing.assert_close(layer(moved), want, rtol=1e-4, atol=1e-5)
        x[0, :, 0, 0] += 3
        changed = (layer(x) - layer(moved.flatten(2)[:, :, order.argsort()].reshape(x.shape))).abs().amax(1)
    assert (changed[0] > 0).all()
    assert channels // layer.heads <= 32


# --- sections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "shape", "classes", "said"),
    [
        (MLP, (1, 8, 8), 0, "`mlp` takes points, the data has shape"),
        (UNET, (2,), 0, "`unet` takes square images"),
        (UNET, (1, 8, 16), 0, "square images"),
        (UNET, (1, 9, 9), 0, "2 levels need a side divisible by 2, the images have 9"),
        (schema.UNet(name="unet", multipliers=(1, 2, 2, 2)), (3, 28, 28), 0, "divisible by 8"),
        (CNN, (2,), 3, "`small-cnn` takes square images"),
        (CNN, (1, 8, 8), 0, "at least two classes"),
        (CNN, (1, 8, 8), 1, "at least two classes"),
        (schema.UNet(name="unet", width=15), (1, 8, 8), 0, "net.width: 15 is odd"),
        (schema.Mlp(name="mlp", width=15), (2,), 0, "net.width: 15 is odd"),
    ],
)
def test_what_does_not_fit_is_a_recipe_error(section: Any, shape: tuple[int, ...], classes: int, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        nets.build(section, shape=shape, classes=classes)


def test_unet_itself_refuses_a_side_that_cannot_be_halved() -> None:
    with pytest.raises(ValueError, match="9 pixels cannot be halved 1 times"):
        UNet(size=9, channels=1, classes=0, width=8, multipliers=(1, 2), blocks=1, attention=(), dropout=0.0)


@pytest.mark.parametrize(("section", "shape"), [*DENOISERS, (CNN, (1, 8, 8))])
def test_a_header_rebuilds_the_network(section: Any, shape: tuple[int, ...]) -> None:
    """Through JSON and back: an equal section, and a network that takes the first one's state and does the same."""
    text = json.dumps(section.model_dump(mode="json"))
    again = TypeAdapter(schema.Net).validate_json(text)
    assert again == section
    first, second = make(section, shape, 3), make(again, shape, 3, seed=1)
    x, c_noise, cond = inputs(2, shape, 3)
    args = (x,) if section is CNN else (x, c_noise, cond)
    with torch.no_grad():
        assert not torch.equal(first(*args), second(*args))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(*args), second(*args))


def test_attention_at_a_side_that_no_level_has_is_refused() -> None:
    section = schema.UNet(name="unet", width=8, multipliers=(1, 2), attention=(16,))
    with pytest.raises(RecipeError, match=r"no level has a side of 16 pixels; the levels have \[28, 14\]"):
        nets.build(section, shape=(1, 28, 28), classes=0)
