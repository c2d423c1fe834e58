"""What a training run wants of a device's memory, by following steps of it without numbers (`allocations`).

    resident    weights of all networks, two moments of Adam for each weight that learns, averages: there all the time
    a phase     what one update makes on top: activations kept for the backward pass, gradients, what is in passing

The method is built on torch's `meta` device and its own losses are run there, so that whatever a method does is counted
as it is written: guidance's second call, gradients through a frozen teacher, recomputation, adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gentk.engine import rng
from gentk.engine.allocations import Casts, Live, backward, size
from gentk.engine.method import Batch, Phase, Trainable
from gentk.engine.precision import saving
from gentk.recipe.schema import Train

META = torch.device("meta")


@dataclass(frozen=True)
class Part:
    """One network that learns: its parameters, and the bytes of its weights, of Adam's moments and of its average."""

    parameters: int
    weights: int
    moments: int
    average: int


@dataclass(frozen=True)
class Work:
    """One phase. Bytes: `kept` for the backward pass by each network's calls, `gradients`, and the `peak` of all."""

    name: str
    nets: tuple[str, ...]
    kept: Mapping[str, int]
    gradients: int
    peak: int


@dataclass(frozen=True)
class Plan:
    """The memory of a run: networks that learn, bytes of `frozen` ones, and the phases of its steps."""

    nets: Mapping[str, Part]
    frozen: int
    phases: tuple[Work, ...] = field(default=())

    @property
    def resident(self) -> int:
        """Bytes that are there all the time, in one process alone."""
        return self.frozen + sum(each.weights + each.moments + each.average for each in self.nets.values())

    def peak(self, devices: int = 1, parallel: Literal["ddp", "fsdp"] = "ddp") -> int:
        """The most bytes on each of `devices`, all with the micro-batch that the plan was made for.

        ddp: whole networks in each; after a backward pass the gradients lie there twice, in the buffer that is summed.
        fsdp: of networks that learn each keeps a part, and all are whole while a loss is computed (`engine.shards`).
        """
        parts = self.nets.values()
        resident, once = self.resident, devices > 1
        if parallel == "fsdp" and devices > 1:
            held = sum(each.weights + each.moments + each.average for each in parts)
            resident = self.frozen + sum(each.weights for each in parts) + -(-held // devices)
        return resident + max(max(work.peak, work.gradients * (2 if once else 1)) for work in self.phases)


def plan(method: Trainable, train: Train, *, rules: str, devices: int = 1) -> Plan:
    """The plan of a method that was built on the meta device, by one micro-batch of each phase (two where it has more).

    Phases are those of the first step and of the last: a warm-up has fewer. `rules`: whose autocast, cuda or cpu. The
    batch is divided among `devices`.
    """
    if train.checkpointing:
        saving(method.nets)
    micro = train.batch // train.accumulate // devices
    phases: dict[str, Work] = {}
    seen: dict[int, int] = {}
    for step in dict.fromkeys((0, train.steps - 1)):
        for phase in method.phases(step):
            if phase.name not in phases:
                work, given = _follow(method, phase, micro, min(2, train.accumulate), train.precision, rules)
                phases[phase.name] = work
                seen |= given
    for net in _others(method).values():  # what no phase calls, such as the decoder of latents, lies there as well
        seen |= {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _tensors(net)}
    learn = {t.untyped_storage()._cdata for net in method.nets.values() for t in _tensors(net)}
    frozen = sum(count for key, count in seen.items() if key not in learn)
    return Plan({name: _part(method, name) for name in method.nets}, frozen, tuple(phases.values()))


def _follow(
    method: Trainable, phase: Phase, micro: int, times: int, precision: str, rules: str
) -> tuple[Work, dict[int, int]]:
    """One phase, and the bytes of the storages that it was given."""
    for name, net in method.nets.items():
        net.requires_grad_(name in phase.nets).train(name in phase.nets)
    moving = [p for name in phase.nets for p in method.nets[name].parameters()]
    kept: dict[str, int] = {}
    with Live() as live, _watched(method, live, kept):
        for i in range(times):
            batch = _batch(method, micro)
            live.forget()
            with Casts(precision, rules) as casts:
                loss, _ = phase.loss(batch, rng.generator("plan", phase.name, i))
                casts.passed()
                if i == 0:
                    first = dict(kept)
                backward(loss)
            del loss, batch
        gradients = size(p.grad for p in moving if p.grad is not None)
        peak = live.peak
    for p in moving:
        p.grad = None
    return Work(phase.name, phase.nets, first, gradients, peak), dict(live.inputs)


def _batch(method: Trainable, micro: int) -> Batch:
    if method.data is None:
        return Batch(micro)
    x, y = method.data.batch(torch.arange(micro) % len(method.data))
    return Batch(micro, x.to(META), None if y is None else y.to(META))


@contextmanager
def _watched(method: Trainable, live: Live, kept: dict[str, int]) -> Iterator[None]:
    """Adds to `kept` what each network's calls leave behind them: those that learn, and others the method holds."""
    before: list[int] = []
    handles = []

    def enter(_net: nn.Module, _args: Any) -> None:
        before.append(live.now)

    for name, net in (_others(method) | dict(method.nets)).items():

        def leave(_net: nn.Module, _args: Any, _out: Any, name: str = name) -> None:
            kept[name] = kept.get(name, 0) + live.now - before.pop()

        handles += [net.register_forward_pre_hook(enter), net.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def without_activations(method: Trainable) -> list[str]:
    """What can be said of a method that does not run without numbers: its networks alone, in words."""
    told = Plan({name: _part(method, name) for name in method.nets}, 0)
    gradients = max(size(net.parameters()) for net in method.nets.values())
    held = f"{_mib(told.resident)} for weights, moments and averages, {_mib(gradients)} for gradients"
    return [*_nets(told), f"memory: {held}; activations are not known beforehand for this method"]


def _others(method: Trainable) -> dict[str, nn.Module]:
    """Networks that the method holds and that do not learn, by the names of its attributes."""
    return {name: each for name, each in vars(method).items() if isinstance(each, nn.Module)}


def _part(method: Trainable, name: str) -> Part:
    net = method.nets[name]
    count = sum(p.numel() for p in net.parameters())
    weights = size(_tensors(net))
    moments = 2 * size(net.parameters())
    return Part(count, weights, moments, weights if name in method.ema else 0)


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def lines(plan: Plan, train: Train, devices: int = 1) -> list[str]:
    """The plan in words, for `--dry-run`."""
    told = [*_nets(plan), f"frozen networks: {_mib(plan.frozen)}"]
    for work in plan.phases:
        kept = ", ".join(f"{name} {_mib(count)}" for name, count in work.kept.items())
        told.append(
            f"phase {work.name}: activations kept by {kept or 'nothing'}; gradients {_mib(work.gradients)}; "
            f"at most {_mib(work.peak)} at once"
        )
    micro = train.batch // train.accumulate // devices
    told.append(
        f"memory: {_mib(plan.peak(devices, train.parallel))} on each device for {micro} samples at a time, "
        f"{_mib(plan.resident)} of it all the time; libraries and the device's context come on top"
    )
    return told


def _nets(plan: Plan) -> list[str]:
    return [
        f"{name}: {part.parameters:,} parameters"
        + (f", averaged: {_mib(part.average)} for the average, " if part.average else ": ")
        + f"weights {_mib(part.weights)}, moments {_mib(part.moments)}"
        for name, part in plan.nets.items()
    ]


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
