"""Which networks learn in a phase: `net.requires_grad_(moves).train(moves)` without the walk through the net.

A phase gives every network its role, twice per step in a one-step method; on 80 modules the walk, and the way in which
`nn.Module` sets an attribute, cost more than all else that the loop does (benchmarks/overhead.py).
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn

from gentk.engine import walk

_PLAIN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def give(net: nn.Module, moves: bool) -> None:
    """Lets `net` learn, or freezes it: parameters without gradient (they still flow through), evaluation mode."""
    modules = walk.modules(net)
    if net not in _PLAIN:
        _PLAIN[net] = all(type(module).train is nn.Module.train for module in modules)
    if not _PLAIN[net]:  # a module with a `train` of its own is asked as torch asks it
        net.requires_grad_(moves).train(moves)
        return
    for module in modules:
        inside = module.__dict__
        inside["training"] = moves
        for parameter in inside["_parameters"].values():
            if parameter is not None and parameter.requires_grad is not moves:
                parameter.requires_grad_(moves)
