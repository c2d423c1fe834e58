"""A network's modules, found once: torch's walk costs a small network more than moving all of its weights does.

Parameters and buffers are looked up in the modules each time, for wrappers exchange them.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import Tensor, nn

_BELOW: WeakKeyDictionary[nn.Module, list[nn.Module]] = WeakKeyDictionary()  # without the network: it would never go


def modules(net: nn.Module) -> list[nn.Module]:
    """What `net.modules()` gives; a module that comes in later is not seen."""
    if net not in _BELOW:
        _BELOW[net] = list(net.modules())[1:]
    return [net, *_BELOW[net]]


def parameters(net: nn.Module) -> list[nn.Parameter]:
    """What `net.parameters()` gives: each once, in that order."""
    found = [p for module in modules(net) for p in module.__dict__["_parameters"].values() if p is not None]
    return list(dict.fromkeys(found))


def buffers(net: nn.Module) -> list[Tensor]:
    """What `net.buffers()` gives."""
    found = [b for module in modules(net) for b in module.__dict__["_buffers"].values() if b is not None]
    return list(dict.fromkeys(found))
