"""The U-Net of google/ddpm-cifar10-32 against diffusers' own, by its names and at the same random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gentk import nets
from gentk.errors import RecipeError
from gentk.nets import ddpm, keymaps
from gentk.recipe import schema

from .formula import fill, numbers

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'gentk[t2i]'")

SMALL: dict[str, Any] = {"width": 16, "multipliers": (1, 2, 3), "blocks": 2, "attention": (8,), "groups": 8}
CASES: dict[str, dict[str, Any]] = {
    "one head": SMALL,
    "heads of 8": {**SMALL, "head_width": 8, "attention": (8, 4)},
    "one block": {**SMALL, "blocks": 1, "multipliers": (1, 1), "attention": (16,)},
    "no attention but the middle's": {**SMALL, "attention": ()},
}


def section(settings: dict[str, Any]) -> schema.DdpmUNet:
    return schema.DdpmUNet(name="ddpm-unet", **settings)


def reference(own: schema.DdpmUNet, side: int) -> nn.Module:
    """diffusers' network with the configuration that the hub's file has, at the section's sizes."""
    attends = [side >> level in own.attention for level in range(len(own.multipliers))]
    net: nn.Module = diffusers.UNet2DModel(
        sample_size=side,
        in_channels=3,
        out_channels=3,
        center_input_sample=False,
        time_embedding_type="positional",
        freq_shift=1,
        flip_sin_to_cos=False,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        block_out_channels=tuple(m * own.width for m in own.multipliers),
        layers_per_block=own.blocks,
        mid_block_scale_factor=1,
        downsample_padding=0,
        act_fn="silu",
        attention_head_dim=own.head_width,
        norm_num_groups=own.groups,
        norm_eps=1e-6,
    )
    return net.eval()


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    own = section(CASES[name])
    theirs = reference(own, 16)
    theirs.load_state_dict(fill(theirs.state_dict()))
    net = nets.build(own, shape=(3, 16, 16), classes=0).eval()
    net.load_state_dict(keymaps.diffusers_ddpm(theirs.state_dict(), net))
    return net, theirs


def outputs(net: nn.Module, theirs: nn.Module) -> tuple[Tensor, Tensor]:
    x, t = 4 * numbers("x", (2, 3, 16, 16)), torch.tensor([3.0, 901.0])
    with torch.no_grad():
        return net(x, t), theirs(x, t).sample


@pytest.mark.parametrize("name", CASES)
def test_output_is_that_of_diffusers(name: str) -> None:
    ours, want = outputs(*pair(name))
    assert want.square().mean().sqrt() > 0.3
    torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-5)


def test_google_ddpm_cifar10_32_key_for_key() -> None:
    own = schema.DdpmUNet(name="ddpm-unet")
    with torch.device("meta"):
        net = nets.build(own, shape=(3, 32, 32), classes=0)
        theirs = reference(own, 32)
    want = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in net.state_dict().items()} == want
    assert sum(p.numel() for p in net.parameters()) == 35_746_307


def test_older_files_name_the_attention_otherwise() -> None:
    net, _ = pair("one head")
    state = net.state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older(key: str) -> str:
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        return key

    renamed = {older(k): v for k, v in state.items()}
    assert "mid_block.attentions.0.query.weight" in renamed
    mapped = keymaps.diffusers_ddpm(renamed, net)
    assert all(mapped[k] is v for k, v in state.items())


def wrong_padding(net: nn.Module, patch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        out: Tensor = nn.functional.conv2d(x, self.conv.weight, self.conv.bias, stride=2, padding=1)
        return out

    patch.setattr(ddpm.Downsample, "forward", forward)


def swapped_waves(net: nn.Module, patch: pytest.MonkeyPatch) -> None:
    theirs = ddpm.sinusoids
    patch.setattr(ddpm, "sinusoids", lambda label, width, last: theirs(label, width, last=last)[::-1])


def other_frequencies(net: nn.Module, patch: pytest.MonkeyPatch) -> None:
    theirs = ddpm.sinusoids
    patch.setattr(ddpm, "sinusoids", lambda label, width, last: theirs(label, width, last=not last))


def other_eps(net: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-5


def other_groups(net: nn.Module, patch: pytest.MonkeyPatch) -> None:
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = 4


@pytest.mark.parametrize("mistake", [wrong_padding, swapped_waves, other_frequencies, other_eps, other_groups])
def test_known_mistakes_are_seen(mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net, theirs = pair("one head")
    ours, want = outputs(net, theirs)
    within = (ours - want).abs().max()
    mistake(net, monkeypatch)
    assert (outputs(net, theirs)[0] - want).abs().max() > max(2e-5, 5 * float(within))


@pytest.mark.parametrize("name", ["ddpm-unet", "noise-cnn"])
def test_labels_are_not_dropped_in_silence(name: str) -> None:
    kind: Any = schema.DdpmUNet if name == "ddpm-unet" else schema.NoiseCnn
    with pytest.raises(RecipeError, match=f"`{name}` reads no labels, the data has 10 classes"):
        nets.build(kind(name=name), shape=(3, 32, 32), classes=10)


def test_a_gradient_reaches_every_parameter() -> None:
    net, _ = pair("one block")
    net(numbers("x", (2, 3, 16, 16)), torch.tensor([3.0, 901.0])).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        # a shift of all keys alike changes no attention
        assert p.grad.abs().max() > 1e-6 or name.endswith("to_k.bias"), name
