"""Low-rank adapters: nothing at the start, their own gradients only, one base in memory, and a merge that is the same.

Second derivation: a layer whose weight is W + (alpha / r) B A, written out, and its gradients by the chain rule.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk import nets
from gentk.errors import RecipeError
from gentk.nets.lora import Adapted, adapted, merged
from gentk.recipe.lora import Lora
from gentk.recipe.schema import DdpmUNet, Mlp, Net, SongUNet, UNet

UNET = UNet(name="unet", width=16, multipliers=(1, 2), blocks=1, attention=(4,))
KINDS: dict[str, tuple[Net, tuple[int, ...], int]] = {
    "unet": (UNET, (1, 8, 8), 3),
    "songunet": (SongUNet(name="songunet", width=16, multipliers=(1, 2), blocks=1, attention=(4,)), (3, 8, 8), 0),
    "ddpm-unet": (DdpmUNet(name="ddpm-unet", width=32, multipliers=(1, 2), blocks=1, attention=(4,)), (3, 8, 8), 0),
    "mlp": (Mlp(name="mlp", width=16, blocks=2), (2,), 2),
}


def net_of(kind: str = "unet", seed: int = 0) -> nn.Module:
    """A network of which no weight is zero, so that every layer matters."""
    section, shape, classes = KINDS[kind]
    torch.manual_seed(seed)
    net = nets.build(section, shape=shape, classes=classes)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape) * 0.05)
    return net.eval()


def inputs(kind: str = "unet") -> tuple[Tensor, Tensor, Tensor | None]:
    _, shape, classes = KINDS[kind]
    gen = torch.Generator().manual_seed(1)
    cond = torch.arange(5) % classes if classes else None
    return torch.randn(5, *shape, generator=gen), torch.rand(5, generator=gen), cond


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(net: Adapted, seed: int = 3) -> Adapted:
    """With adapters that say something."""
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(torch.randn(p.shape, generator=gen(100 * seed + i)) * 0.1)
    return net


def storages(tensors: Iterator[Tensor]) -> set[int]:
    return {t.data_ptr() for t in tensors}


@pytest.mark.parametrize("kind", KINDS)
def test_zero_adapters_are_the_base_bit_for_bit(kind: str) -> None:
    """Its answers, and the gradient that it passes to its input, are those of a full copy."""
    base = net_of(kind)
    whole, net = copy.deepcopy(base), adapted(base, Lora(rank=4), gen())
    x, label, cond = inputs(kind)
    answers = []
    for each in (whole, net):
        leaf = x.clone().requires_grad_()
        out = each(leaf, label, cond)
        (grad,) = torch.autograd.grad(out.square().sum(), leaf)
        answers.append((out, grad))
    assert torch.equal(answers[0][0], answers[1][0])
    assert torch.equal(answers[0][1], answers[1][1])
    assert not torch.equal(moved(net)(x, label, cond), answers[0][0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_network_is_the_same_function(kind: str) -> None:
    """To 1e-6 of the answer: float32 weights, merged by one rounding of 6e-8 each, both computed in float64."""
    net = moved(adapted(net_of(kind), Lora(rank=4, alpha=6.0), gen()))
    plain = merged(net).double()
    net.double().body.double()
    x, label, cond = inputs(kind)
    x, label = x.double(), label.double()
    wanted = net(x, label, cond).detach()
    assert plain.state_dict().keys() == net_of(kind).state_dict().keys(), "the base's own layout"
    got = plain(x, label, cond).detach()
    assert (got - wanted).abs().max() < 1e-6 * max(1.0, float(wanted.abs().max()))
    assert not any(m._forward_hooks for m in plain.modules())
    assert storages(plain.parameters()).isdisjoint(storages(net.body.parameters()))
    assert torch.equal(net(x, label, cond), wanted), "merging changes nothing in the network itself"


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(5, 7), nn.Conv2d(5, 7, 1), nn.Conv2d(5, 7, 3, padding=1), nn.Conv2d(5, 7, 3, stride=2)],
    ids=str,
)
def test_a_layer_is_w_plus_b_a(layer: nn.Linear | nn.Conv2d) -> None:
    """The answer and the adapters' gradients, against the layer of weight W + (alpha / r) B A written out."""
    net = moved(adapted(nn.Sequential(copy.deepcopy(layer)), Lora(rank=3, alpha=1.5), gen())).double()
    net.body.double()
    ((name, adapter),) = net.named_adapters()
    assert name == "0"
    x = torch.randn((4, 5) if isinstance(layer, nn.Linear) else (4, 5, 6, 6), generator=gen(2)).double()
    out = net(x)
    down, up = (p.detach().clone().requires_grad_() for p in (adapter.down, adapter.up))
    plain = net.body[0]  # type: ignore[index]
    weight = plain.weight + 0.5 * torch.einsum("or,rk->ok", up.flatten(1), down.flatten(1)).reshape(plain.weight.shape)
    if isinstance(layer, nn.Linear):
        wanted = F.linear(x, weight, plain.bias)
    else:
        wanted = F.conv2d(x, weight, plain.bias, stride=layer.stride, padding=layer.padding)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(adapter.delta(), (weight - plain.weight).detach())
    got = torch.autograd.grad(out.square().sum(), (adapter.down, adapter.up))
    torch.testing.assert_close(got, torch.autograd.grad(wanted.square().sum(), (down, up)))


def test_to_the_outside_it_is_its_adapters() -> None:
    base = net_of()
    net = adapted(base, Lora(rank=2), gen())
    assert all(name.endswith((".down", ".up")) for name, _ in net.named_parameters())
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}
    assert sum(p.numel() for p in net.parameters()) < 0.3 * sum(p.numel() for p in base.parameters())
    moved(net)
    out = net(*inputs())
    out.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())
    assert all(p.grad is None and not p.requires_grad for p in (*base.parameters(), *net.body.parameters()))
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())
    again = adapted(base, Lora(rank=2), gen(5))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(*inputs()), out)


def test_one_base_serves_many() -> None:
    """Two networks and a copy of one: three times the adapters, once the base; each by its own adapters."""
    base = net_of()
    fake, student = (adapted(base, Lora(rank=2), gen(i)) for i in range(2))
    moved(fake, 1), moved(student, 2)
    average = copy.deepcopy(student)
    shared = storages(base.parameters())
    for net in (fake, student, average):
        assert storages(net.body.parameters()) == shared
        assert storages(net.parameters()).isdisjoint(shared)
    assert storages(average.parameters()).isdisjoint(storages(student.parameters()))
    before = [net(*inputs()) for net in (fake, student, average)]
    assert torch.equal(before[1], before[2])
    assert not torch.equal(before[0], before[1])
    moved(student, 4)
    after = [net(*inputs()) for net in (fake, student, average)]
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[2], before[2]), "the copy has adapters of its own"
    assert not torch.equal(after[1], before[1])
    assert torch.equal(base(*inputs()), net_of()(*inputs())), "the base is as it was"


def test_modes_do_not_reach_the_others() -> None:
    base = net_of()
    net, other = (adapted(base, Lora(rank=2), gen(i)) for i in range(2))
    net.train()
    assert all(m.training for m in net.body.modules())
    assert not any(m.training for m in (*base.modules(), *other.body.modules()))
    assert not any(m.training for m in net.eval().body.modules())


def test_adapters_start_as_torch_starts_a_layer_and_by_their_key_alone() -> None:
    """A uniform in +-1/sqrt(in): its variance 1 / (3 in), within 5 standard errors; B zero; nothing global is drawn."""
    base = nn.Sequential(nn.Linear(400, 300))
    state = torch.get_rng_state()
    a, b, c = (adapted(base, Lora(rank=64), gen(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    down, up = (a.state_dict()[f"adapters.0.{name}"] for name in ("down", "up"))
    assert up.count_nonzero() == 0
    n = down.numel()
    # of x^2 over x uniform in +-1 the standard deviation is sqrt(1/5 - 1/9)
    error = math.sqrt(1 / 5 - 1 / 9) / math.sqrt(n)
    assert abs(float(down.square().mean()) * 400 - 1 / 3) < 5 * error
    assert float(down.abs().max()) <= 1 / math.sqrt(400)
    states = [net.state_dict() for net in (a, b, c)]
    assert torch.equal(states[0]["adapters.0.down"], states[1]["adapters.0.down"])
    assert not torch.equal(states[0]["adapters.0.down"], states[2]["adapters.0.down"])


def test_targets_are_whole_names() -> None:
    base = net_of()

    def names(*targets: str) -> set[str]:
        return {name for name, _ in adapted(base, Lora(rank=2, targets=targets), gen()).named_adapters()}

    assert names("qkv") == {"down.1.0.attend.qkv", "mid.attend.qkv", "up.0.0.attend.qkv"}
    assert names("attend") == names("qkv", "proj")
    assert names("mid") == {f"mid.{n}" for n in ("conv0", "affine", "conv1", "attend.qkv", "attend.proj")}
    assert "time.0" in names()
    with pytest.raises(RecipeError, match=r"lora\.targets: `qkw` names no linear layer or convolution.*qkv"):
        names("attend", "qkw")
    with pytest.raises(RecipeError, match="no linear layer"):
        adapted(nn.Sequential(nn.LayerNorm(3)), Lora(), gen())


def test_ranks_beyond_a_layers_own_are_cut() -> None:
    net = adapted(nn.Sequential(nn.Linear(3, 9)), Lora(rank=64), gen())
    assert [tuple(p.shape) for p in net.parameters()] == [(3, 3), (9, 3)]


def test_a_bfloat16_base_with_float32_adapters() -> None:
    """Adapters stay float32, the answer is bfloat16, and merging rounds once: the sum is float32's."""
    base = net_of().bfloat16()
    net = moved(adapted(base, Lora(rank=2), gen()))
    x, label, cond = inputs()
    out = net(x, label.bfloat16(), cond)
    assert out.dtype == torch.bfloat16
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    plain = merged(net)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    name, adapter = next(net.named_adapters())
    wanted = base.get_submodule(name).weight.double() + adapter.delta()
    assert torch.equal(plain.get_submodule(name).weight, wanted.float())
    # bfloat16 has 8 bits: some tens of roundings of 2^-8
    out, got = out.detach().float(), plain(x, label, cond)
    assert (got - out).abs().max() < 32 * 2**-8 * float(out.abs().max())
