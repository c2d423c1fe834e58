"""Networks in parts (FSDP2): each process keeps its rows of every weight, average and optimiser state.

Each network is sharded by itself. While a phase's loss is computed the networks are whole in every process, so that a
method may use more of them than `forward`; their gradients are averaged and parted by FSDP2's hooks, or where a loss
went around these, here. Between updates only the parts are left, and optimisers and averages move those alone.

A checkpoint holds the parts as torch.distributed.checkpoint writes them, in safetensors files: any number of processes
can read it, one too, and nothing in it is executed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from gentk.engine.dist import Group


def part(nets: Iterable[nn.Module], group: Group, where: torch.device) -> None:
    """Shards each network in place. One of fewer numbers than processes stays whole, as FSDP2's scalars must.

    What a method writes into weights between updates is lost, unless by `ema.update`: such methods say
    `shardable = False`.
    """
    mesh = init_device_mesh(where.type, (group.size,))
    # views that FSDP2 warns of are not written to
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    for net in nets:
        if all(p.dim() for p in net.parameters()) and sum(p.numel() for p in net.parameters()) >= group.size:
            for p in net.parameters():  # FSDP2 takes no other layout
                p.data = p.data.contiguous()
            fully_shard(net, mesh=mesh)
            assert isinstance(net, FSDPModule)
            net.set_reshard_after_backward(False)


def whole(nets: Iterable[nn.Module]) -> None:
    """Gathers the weights of sharded networks, for use by anything; in all processes at once."""
    for net in nets:
        if isinstance(net, FSDPModule):
            net.unshard()


def parted(nets: Iterable[nn.Module]) -> None:
    """Leaves each process its part again."""
    for net in nets:
        if isinstance(net, FSDPModule):
            net.reshard()


def collect(net: nn.Module, group: Group) -> None:
    """After a backward pass: averages what FSDP2's hooks have not seen of the gradients, and leaves the parts alone."""
    if not isinstance(net, FSDPModule):
        return
    left = {name: p.grad for name, p in net.named_parameters() if not isinstance(p, DTensor) and p.grad is not None}
    for p in net.parameters():
        if not isinstance(p, DTensor):
            p.grad = None
    net.reshard()
    for name, p in net.named_parameters():
        if name in left:
            assert isinstance(p, DTensor)
            grad = left[name]
            group.add(grad)
            own = like(grad / group.size, p)
            p.grad = own if p.grad is None else p.grad + own


def full(x: Tensor) -> Tensor:
    """The whole tensor, in all processes at once."""
    if not isinstance(x, DTensor):
        return x.detach()
    found: Tensor = x.full_tensor()
    return found.detach()


def like(x: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, parted as `model` is."""
    if not isinstance(model, DTensor):
        return x
    mesh, placement = model.device_mesh, model.placements[0]
    if not isinstance(placement, Shard):
        raise TypeError(f"{placement} is no part of a tensor")
    chunks = torch.chunk(x, mesh.size(), dim=placement.dim)
    rank = mesh.get_local_rank()
    own = chunks[rank] if rank < len(chunks) else x.narrow(placement.dim, 0, 0)
    return DTensor.from_local(
        own.contiguous().to(model.device),
        mesh,
        model.placements,
        run_check=False,
        shape=x.shape,
        stride=x.stride(),
    )


def plain(averaged: Mapping[str, nn.Module], templates: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Whole copies of sharded networks; `templates` are whole ones of the same kind. In all processes at once."""
    found = {}
    for name, net in averaged.items():
        if not isinstance(net, FSDPModule):
            found[name] = net
            continue
        net.reshard()
        values = {key: full(value) for key, value in net.state_dict().items()}
        device = next(iter(values.values())).device
        copied = copy.deepcopy(templates[name]).to(device)
        copied.load_state_dict(values)
        found[name] = copied.eval().requires_grad_(False)
    return found


def flat(packed: dict[str, Any], names: Mapping[str, list[str]]) -> dict[str, Tensor]:
    """A state's tensors by one name each; `names`: those of each network's parameters, in the optimiser's order."""
    found: dict[str, Tensor] = {}
    for group in ("nets", "averaged"):
        for net, state in packed[group].items():
            found |= {f"{group}/{net}/{key}": value for key, value in state.items()}
    for net, state in packed["optimisers"].items():
        for index, values in state["state"].items():
            found |= {f"optimisers/{net}/{key}/{names[net][index]}": value for key, value in values.items()}
    return found


def unflat(tensors: Mapping[str, Tensor], groups: Mapping[str, Any], names: Mapping[str, list[str]]) -> dict[str, Any]:
    """The inverse of `flat`; `groups` are the optimisers' `param_groups`."""
    packed: dict[str, Any] = {"nets": {}, "averaged": {}, "optimisers": {}}
    for net, section in groups.items():
        packed["optimisers"][net] = {"state": {}, "param_groups": section}
    for key, value in tensors.items():
        group, net, rest = key.split("/", 2)
        if group == "optimisers":
            kind, parameter = rest.split("/", 1)
            index = names[net].index(parameter)
            packed[group][net]["state"].setdefault(index, {})[kind] = value
        else:
            packed[group].setdefault(net, {})[rest] = value
    return packed


def mesh_of(net: nn.Module) -> DeviceMesh | None:
    """The processes that a network is parted among."""
    for p in net.parameters():
        if isinstance(p, DTensor):
            return p.device_mesh
    return None
