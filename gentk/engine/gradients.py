"""One backward pass over several processes: the mean of their gradients, and what each has to say of its own.

DDP's wrapper is left aside, its arithmetic is not: after a phase's backward pass the gradients of that phase's networks
are summed in one flat all-reduce and divided by the number of processes. The wrapper would hide what methods use of
their networks (`denoiser.process`, `energy.score`, `sampler.coordinates`), sees only what goes through `forward` of the
wrapper, must be told when networks take turns at being frozen, and does not take gradients of gradients (energies).
Beside the gradients in the same buffer travel the loss, a fault and a stop signal of every process, so that all decide
alike at no further cost.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gentk.engine import walk
from gentk.engine.dist import Group

FAULT = 1.0


@dataclass(frozen=True)
class Heard:
    """What all processes know after an update's exchange: the loss of each, who has a fault, a stop signal's name."""

    losses: Tensor
    faults: tuple[int, ...]
    signal: str | None
    apart: tuple[int, ...] = ()  # whose own gradient is not finite, looked up where the mean is not

    @property
    def loss(self) -> Tensor:
        """The mean loss, ()."""
        return self.losses.mean()


def share(group: Group, nets: Sequence[nn.Module], loss: Tensor, *, fault: bool, stop: str | None) -> Heard:
    """Averages the gradients of `nets` over the group, in place, and tells all of this process's loss, fault and stop.

    A parameter without a gradient in every process keeps none; one without in some counts as zero there.
    """
    parameters = [p for net in nets for p in walk.parameters(net)]
    where, size = loss.device, group.size
    told = torch.zeros(3, size, device=where)
    told[:, group.rank] = torch.stack(
        [loss.detach().float(), *(torch.tensor(x, device=where) for x in (float(fault), _number(stop)))]
    )
    present = torch.tensor([float(p.grad is not None) for p in parameters], device=where)
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters]
    flat = torch.cat([told.flatten(), present, *parts])
    group.add(flat)
    told, present, rest = flat[: 3 * size].reshape(3, size), flat[3 * size :][: len(parameters)], flat[3 * size :]
    rest = rest[len(parameters) :]
    words = told[1:].cpu()
    faults = tuple(int(r) for r in words[0].nonzero().flatten())
    numbers = [int(n) for n in words[1] if n]
    name = signal.Signals(numbers[0]).name if numbers else None
    apart: tuple[int, ...] = ()
    if not faults and not bool(rest.isfinite().all()):
        own = all(bool(g.isfinite().all()) for g in parts)
        apart = tuple(r for r, text in enumerate(group.texts("" if own else "not finite")) if text)
    sums = torch.split(rest, [p.numel() for p in parameters])
    for p, total, some in zip(parameters, sums, present.cpu().tolist(), strict=True):
        # in the parameter's own layout, channels last where it is: fused optimisers read both in the order of memory
        p.grad = torch.empty_like(p).copy_((total / size).reshape(p.shape)) if some else None
    return Heard(told[0], faults, name, apart)


def _number(name: str | None) -> float:
    return 0.0 if name is None else float(signal.Signals[name].value)
