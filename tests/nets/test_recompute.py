"""Activation checkpointing changes no number and keeps less."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gentk import nets
from gentk.nets.lora import Adapted, adapted
from gentk.nets.recompute import recompute
from gentk.recipe.lora import Lora
from gentk.recipe.schema import Adm, DdpmUNet, Mlp, Net, SongUNet, UNet
from tests.nets import tiny_pipelines

COMMON: dict[str, Any] = {"width": 32, "multipliers": (1, 2), "blocks": 2, "attention": (4,), "dropout": 0.3}
SECTIONS: dict[str, Net] = {
    "unet": UNet(name="unet", **COMMON),
    "songunet": SongUNet(name="songunet", **COMMON),
    "adm": Adm(name="adm", **COMMON),
    "ddpm-unet": DdpmUNet(name="ddpm-unet", **COMMON),
}


def net_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    net = nets.build(SECTIONS[kind], shape=(3, 8, 8), classes=0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape) * 0.05)
    return net.train()


def step(net: nn.Module, *, bf16: bool = False) -> tuple[Tensor, list[Tensor], int]:
    """The answer, the gradients of input and parameters, and the bytes kept for the backward pass; dropout is on."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            out = net(x, torch.linspace(-1, 1, 4), None)
        loss = out.float().square().sum()
    parameters = [p for p in net.parameters() if p.requires_grad]
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    size = sum(n for place, n in kept.items() if place not in weights)
    return out, list(torch.autograd.grad(loss, [x, *parameters])), size


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", SECTIONS)
def test_the_gradients_are_the_very_same_and_less_is_kept(kind: str, bf16: bool) -> None:
    plain = net_of(kind)
    saving = copy.deepcopy(plain)
    assert recompute(saving) >= 9
    out, grads, size = step(plain, bf16=bf16)
    again, same, less = step(saving, bf16=bf16)
    assert torch.equal(out, again)
    assert all(torch.equal(a, b) for a, b in zip(grads, same, strict=True))
    assert less < 0.5 * size
    assert saving.state_dict().keys() == plain.state_dict().keys()
    without = step(plain.eval(), bf16=bf16)[0]
    assert not torch.equal(without, out), "dropout was on"


def test_adapters_on_a_base_that_recomputes() -> None:
    """The switch may come before the adapters or after; each network recomputes with its own."""
    base, other = net_of("unet"), net_of("unet")
    recompute(other)

    def of(base: nn.Module, seed: int) -> Adapted:
        net = adapted(base, Lora(rank=2), torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for i, p in enumerate(net.parameters()):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed * 100 + i)) * 0.1)
        return net.train()

    plain, saving, late = of(base, 1), of(other, 1), of(base, 1)
    of(other, 2)
    assert recompute(late) == recompute(other)
    for net in (saving, copy.deepcopy(saving), late):
        for a, b in zip(step(plain)[1], step(net)[1], strict=True):
            assert torch.equal(a, b)
        assert step(net)[2] < 0.5 * step(plain)[2]


def test_copies_recompute_by_themselves() -> None:
    """The copy's blocks are its own: a change of the original does not show."""
    net = net_of("unet").eval()
    recompute(net)
    recompute(net)  # twice is once
    new = copy.deepcopy(net)
    before = step(new)[0]
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert torch.equal(step(new)[0], before)
    assert not torch.equal(step(net)[0], before)


def test_nothing_to_recompute() -> None:
    assert recompute(nets.build(Mlp(name="mlp", width=8, blocks=2), shape=(2,), classes=0)) == 0


def test_networks_of_diffusers_have_their_own_switch() -> None:
    diffusers, _ = tiny_pipelines.packages()
    torch.manual_seed(0)
    core = tiny_pipelines.unet(diffusers)

    class Told(nn.Module):
        def __init__(self, core: nn.Module) -> None:
            super().__init__()
            self.core = core
            self.words = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(3))
            self.lift = torch.nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor, label: Tensor, _cond: None) -> Tensor:
            out: Tensor = self.core(self.lift(x), label, encoder_hidden_states=self.words, return_dict=False)[0]
            return out

    plain = Told(core).train()
    saving = copy.deepcopy(plain)
    assert recompute(saving) == 1
    for a, b in zip(step(plain)[1], step(saving)[1], strict=True):
        assert torch.equal(a, b)
    assert step(saving)[2] < 0.5 * step(plain)[2]
