"""The state of a training: what a checkpoint holds, whole in every process or in parts; to disk and back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentk.engine import checkpoint, optim
from gentk.engine.dist import Group
from gentk.engine.method import Trainable
from gentk.errors import RecipeError, RunFailed


@dataclass
class State:
    """Everything that a checkpoint holds: networks, averages, optimisers and the number of steps done.

    `templates`, where the processes hold parts of the networks: whole copies of the averaged ones, to be filled.
    """

    nets: dict[str, nn.Module]
    averaged: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]
    step: int = 0
    skipped: dict[str, int] = field(default_factory=dict)  # updates skipped in a row, by phase
    templates: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def parted(self) -> bool:
        """Whether each process holds a part."""
        return bool(self.templates)

    def pack(self) -> dict[str, Any]:
        """Plain containers of tensors, for torch.load(weights_only=True)."""
        return {
            "step": self.step,
            "skipped": dict(self.skipped),
            "nets": {k: v.state_dict() for k, v in self.nets.items()},
            "averaged": {k: v.state_dict() for k, v in self.averaged.items()},
            "optimisers": {k: v.state_dict() for k, v in self.optimisers.items()},
        }

    def unpack(self, packed: dict[str, Any]) -> None:
        """The inverse of `pack`, in place. Raises RunFailed when the checkpoint is of other networks."""
        try:
            for name, group in (("nets", self.nets), ("averaged", self.averaged), ("optimisers", self.optimisers)):
                for k, part in group.items():
                    part.load_state_dict(packed[name][k])
        except (KeyError, RuntimeError, ValueError) as e:
            raise RunFailed(
                f"the checkpoint does not fit the networks of the recipe: {e}", hint="--fresh starts again"
            ) from e
        self.step, self.skipped = packed["step"], dict(packed["skipped"])

    def shown(self) -> dict[str, nn.Module]:
        """The averages, whole; in all processes at once."""
        if not self.parted:
            return self.averaged
        from gentk.engine import shards

        return shards.plain(self.averaged, self.templates)

    def gather(self) -> None:
        """Makes the networks whole for use, until `part`; nothing where they are."""
        if self.parted:
            from gentk.engine import shards

            shards.whole(self.nets.values())

    def part(self, moved: Iterable[nn.Module] = (), group: Group | None = None) -> None:
        """Leaves each process its part again, with the gradients of the networks that `moved`."""
        if self.parted:
            from gentk.engine import shards

            for net in moved:
                assert group is not None
                shards.collect(net, group)
            shards.parted(self.nets.values())

    def _names(self) -> dict[str, list[str]]:
        return {k: [name for name, _ in net.named_parameters()] for k, net in self.nets.items()}

    def save(self, folder: Path, keep: int, group: Group) -> Path:
        """Writes the checkpoint of this step: rank 0 the whole, or each process its part."""
        if not self.parted:
            return Path(group.from_first(lambda: str(checkpoint.save(folder, self.step, self.pack(), keep=keep))))
        from gentk.engine import shards

        self.part()
        packed = self.pack()
        groups = {k: section["param_groups"] for k, section in packed["optimisers"].items()}
        facts = {"skipped": packed["skipped"], "groups": groups}
        return checkpoint.save_parts(folder, self.step, shards.flat(packed, self._names()), facts, keep=keep)

    def load(self, folder: Path, where: torch.device, group: Group, warn: Callable[[str], None]) -> None:
        """Takes the newest undamaged checkpoint, of either kind, if there is one.

        Raises RunFailed where it does not fit, or where the processes see different ones.
        """
        found = checkpoint.latest(folder, where, warn)
        step = -1 if found is None else found.step if isinstance(found, checkpoint.Parts) else int(found["step"])
        seen = group.texts(str(step))
        if len(set(seen)) > 1:
            raise RunFailed(
                f"{folder}: the processes see different checkpoints: of steps {', '.join(seen)} by rank (-1: none)",
                hint="the run folder must lie on a file system that all nodes share",
            )
        if found is None:
            return
        if not self.parted and isinstance(found, dict):
            self.unpack(found)
            return
        from gentk.engine import shards

        self.part()
        names, models = self._names(), self._models()
        if isinstance(found, checkpoint.Parts):

            def make(name: str, size: torch.Size, kind: torch.dtype) -> Tensor:
                empty = torch.zeros(size, dtype=kind, device=where)
                return shards.like(empty, models[name]) if name in models else empty

            tensors, groups, skipped = found.read(make), found.facts["groups"], found.facts["skipped"]
        else:
            tensors = {k: shards.like(v, models.get(k, v)) for k, v in shards.flat(found, names).items()}
            groups = {k: section["param_groups"] for k, section in found["optimisers"].items()}
            skipped = found["skipped"]
        self.unpack(shards.unflat(tensors, groups, names) | {"step": step, "skipped": skipped})

    def _models(self) -> dict[str, Tensor]:
        """A tensor that is parted as the one of that name in a checkpoint must be."""
        found: dict[str, Tensor] = {}
        for group, nets in (("nets", self.nets), ("averaged", self.averaged)):
            for net, module in nets.items():
                found |= {f"{group}/{net}/{key}": value for key, value in module.state_dict().items()}
        for net, module in self.nets.items():
            for name, p in module.named_parameters():
                found |= {f"optimisers/{net}/{kind}/{name}": p for kind in ("exp_avg", "exp_avg_sq")}
        return found


def start(
    method: Trainable, parallel: str = "ddp", where: torch.device | None = None, group: Group | None = None
) -> State:
    """The state before the first step: the averages are exact copies of their networks.

    Of several processes with `parallel` fsdp each keeps a part. Raises RecipeError for a method that cannot.
    """
    averaged = {name: copy.deepcopy(method.nets[name]).eval().requires_grad_(False) for name in method.ema}
    templates: dict[str, nn.Module] = {}
    if parallel == "fsdp" and group is not None and group.size > 1:
        from gentk.engine import shards

        if not getattr(method, "shardable", True):
            raise RecipeError("train.parallel: fsdp: this method copies its networks as they are", hint="ddp")
        assert where is not None
        templates = {name: copy.deepcopy(net).cpu() for name, net in averaged.items()}
        shards.part([*method.nets.values(), *averaged.values()], group, where)
    optimisers = {name: optim.build(method.optim[name], net.parameters()) for name, net in method.nets.items()}
    return State(dict(method.nets), averaged, optimisers, templates=templates)
