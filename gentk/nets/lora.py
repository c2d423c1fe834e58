"""Low-rank adapters: a network that learns while most of its weights are another's (Hu et al. 2021, arXiv:2106.09685).

    y = W x + b   becomes   y + (alpha / r) B A x        A: (r, in) random, B: (out, r) zero at the start

for linear layers, and for convolutions with A a convolution of the same kernel, stride and padding to r channels and B
one of 1 x 1. One frozen base serves any number of networks: each `Adapted` is a copy of the base's modules that holds
the very same weight tensors, and whose layers add the answers of its own adapters. So a distillation keeps the weights
once: the reference is the base, the fake score the base with adapters A, the student the base with adapters B.

Modules are copied, not shared: train and eval mode, dropout and hooks of one network do not reach the others, and
recomputation in the backward pass meets the right adapters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.errors import RecipeError, did_you_mean
from gentk.recipe.lora import Lora


class Adapter(nn.Module):
    """What is added to one layer's answer: scale * B(A(x)); zero at the start. Parameters are float32."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, section: Lora, gen: torch.Generator) -> None:
        super().__init__()
        rows, columns = layer.weight.shape[0], layer.weight[0].numel()
        r = min(section.rank, rows, columns)
        self.scale = (section.alpha or section.rank) / section.rank
        self.geometry: dict[str, Any] | None = None
        if isinstance(layer, nn.Conv2d):
            self.geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        bound = 1 / math.sqrt(columns)  # as torch starts the layer itself
        down = torch.empty(r, *layer.weight.shape[1:]).uniform_(-bound, bound, generator=gen)
        up = torch.zeros(rows, r, *(1 for _ in layer.weight.shape[2:]))
        self.down = nn.Parameter(down.to(layer.weight.device))
        self.up = nn.Parameter(up.to(layer.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's input -> what its answer changes by, in the shape of that answer; in x's data type."""
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if self.geometry is None:
            return self.scale * F.linear(F.linear(x, down), up)
        return self.scale * F.conv2d(F.conv2d(x, down, **self.geometry), up)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The change of the layer's weight that is the same: the weight's shape, in float64."""
        product: Tensor = self.scale * (self.up.double().flatten(1) @ self.down.double().flatten(1))
        return product.reshape(len(self.up), *self.down.shape[1:])


class Adapted(nn.Module):
    """`base` with adapters: the same function of its inputs plus what they add.

    To the outside it consists of the adapters alone: `parameters()`, `state_dict()` and `requires_grad_` are theirs.
    `train()` and `eval()` reach all modules, `copy.deepcopy` copies the adapters and shares the base's weights.
    `body` is the network that computes.
    """

    def __init__(self, base: nn.Module, adapters: dict[str, Adapter]) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({name.replace(".", "/"): adapter for name, adapter in adapters.items()})
        self._body = (_sharing(base.requires_grad_(False)),)  # in a tuple: its parameters are not this module's
        for name, adapter in adapters.items():
            self.body.get_submodule(name).register_forward_hook(partial(_add, adapter))

    @property
    def body(self) -> nn.Module:
        """The modules that compute, their weights the base's."""
        return self._body[0]

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Any:
        """The body's answer; x is given in the data type of the base's weights."""
        return self.body(x.to(next(self.body.parameters()).dtype), *rest, **named)

    def train(self, mode: bool = True) -> Adapted:
        """Sets the mode of every module, as nn.Module.train."""
        super().train(mode)
        self.body.train(mode)
        return self

    def named_adapters(self) -> Iterator[tuple[str, Adapter]]:
        """(the adapted layer's name in the base, its adapter)."""
        for name, adapter in self.adapters.items():
            assert isinstance(adapter, Adapter)
            yield name.replace("/", "."), adapter

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapted:
        memo |= _kept(self.body)
        made = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made


def adapted(base: nn.Module, section: Lora, gen: torch.Generator) -> Adapted:
    """`base`, frozen from now on, with new adapters on the layers that `section.targets` names; A is drawn from `gen`.

    Raises RecipeError for a target that names no layer which can be adapted.
    """
    found = dict(_adaptable(base))
    for target in section.targets:
        if not any(_names(target, name) for name in found):
            known = {part for name in found for part in name.split(".") if not part.isdigit()}
            raise RecipeError(
                f"lora.targets: `{target}` names no linear layer or convolution{did_you_mean(target, known)}",
                hint=f"names are whole, such as {', '.join(sorted(known)[:8])}",
            )
    chosen = {
        name: Adapter(layer, section, gen)
        for name, layer in found.items()
        if not section.targets or any(_names(target, name) for target in section.targets)
    }
    if not chosen:
        raise RecipeError("lora: the network has no linear layer and no convolution of 1 x 1 or 3 x 3")
    return Adapted(base, chosen)


def merged(net: Adapted) -> nn.Module:
    """A plain network of its own weights that computes the same: every W is W + (alpha / r) B A.

    Sums are rounded once, to float32, whatever the base's data type.
    """
    plain = copy.deepcopy(net.body).float()
    for name, adapter in net.named_adapters():
        layer, source = plain.get_submodule(name), net.body.get_submodule(name)
        assert isinstance(layer.weight, nn.Parameter)
        assert isinstance(source.weight, nn.Parameter)
        for key, hook in list(layer._forward_hooks.items()):
            if isinstance(hook, partial) and hook.func is _add:
                del layer._forward_hooks[key]
        with torch.no_grad():
            layer.weight.copy_(source.weight.double() + adapter.delta())
    return plain


def _add(adapter: Adapter, _layer: nn.Module, args: tuple[Tensor, ...], answer: Tensor) -> Tensor:
    """The forward hook of an adapted layer."""
    more: Tensor = adapter(args[0])
    return answer + more.to(answer.dtype)


def _adaptable(net: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Layers by name. Sub-classes are left out: what they do with their input is not known here."""
    for name, module in net.named_modules():
        if type(module) is nn.Linear or (type(module) is nn.Conv2d and _plain(module)):
            yield name, module


def _plain(layer: nn.Conv2d) -> bool:
    return layer.kernel_size in ((1, 1), (3, 3)) and layer.groups == 1 and layer.padding_mode == "zeros"


def _names(target: str, name: str) -> bool:
    return f".{target}." in f".{name}."


def _kept(net: nn.Module) -> dict[int, Any]:
    """The memo by which copy.deepcopy takes parameters and buffers as they are."""
    return {id(t): t for tensors in (net.parameters(), net.buffers()) for t in tensors}


def _sharing(net: nn.Module) -> nn.Module:
    """A copy of the modules of `net` around the same parameters and buffers."""
    return copy.deepcopy(net, _kept(net))
