"""The torch side that the methods share: data at their noise levels, one loss, what is shown and kept of the energy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gentk import data
from gentk.engine.energetic import ladder
from gentk.engine.loop import NotFinite
from gentk.engine.method import Batch, Export, Metrics, Phase, Result
from gentk.losses.energy import Contrast
from gentk.nets import energy
from gentk.nets.energy import Energy
from gentk.processes import rows
from gentk.processes.models import fast_layout
from gentk.solvers import Noise, drawn


class Remembering(nn.Module):
    """An energy with the chains of persistent contrastive divergence, which a checkpoint keeps beside the weights.

    `chains` (K, *shape); chain k belongs to noise level k modulo their number.
    """

    chains: Tensor

    def __init__(self, net: Energy, chains: Tensor) -> None:
        super().__init__()
        self.energy = net
        self.register_buffer("chains", chains)


@dataclass(frozen=True)
class Given:
    """What a loss is given: data x (B, ...), noised to t (B,) where the energy is time-dependent, and the randomness.

    `energy` maps blocks of rows, (k B, ...) -> (k B,), each row at its own t. `slots` (B,): the chains that take part.
    """

    energy: Callable[[Tensor], Tensor]
    net: Energy
    x: Tensor
    t: Tensor | None
    noise: Noise
    gen: torch.Generator
    slots: Tensor | None = None
    batch: Batch = field(default_factory=lambda: Batch(0))


Loss = Callable[[Given], Contrast]


class Fitting:
    """A `Trainable`: one network, one phase, a loss that contrasts data with negatives."""

    def __init__(self, recipe: Any, where: torch.device, loss: Loss, *, chains: int = 0, start: float = 1.0) -> None:
        self.recipe, self.config, self.where, self.loss = recipe, recipe.method, where, loss
        self.data = data.load(recipe.data, "train")
        self.test = data.load(recipe.data, "test")
        levels = self.config.levels
        self.ladder = () if levels is None else tuple(ladder((levels.low, levels.high), levels.count))
        torch.manual_seed(recipe.seed)  # the initial weights
        some, _ = self.data.batch(torch.arange(min(len(self.data), 20_000)))
        bounds = None if levels is None else (levels.low, levels.high)
        net = energy.build(recipe.net, shape=self.data.shape, levels=bounds, data=some)
        fast_layout(net)
        self.nets: dict[str, nn.Module] = {"energy": net.to(where)}
        if chains:
            spread = torch.tensor(self.ladder or (0.0,))[torch.arange(chains) % max(1, len(self.ladder))]
            spread = (spread**2 + (start * float(net.sd)) ** 2).sqrt().reshape(-1, *(1,) * len(self.data.shape))
            first = net.centre.cpu() + spread * torch.randn(chains, *self.data.shape)
            self.nets = {"energy": Remembering(net, first).to(where)}
        self.ema, self.optim = ("energy",), {"energy": recipe.optim}

    def phases(self, step: int) -> Iterator[Phase]:
        """One update of the energy."""

        def loss(batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
            return self._loss(batch, gen, step)

        yield Phase("energy", ("energy",), loss)

    def _loss(self, batch: Batch, gen: torch.Generator, step: int) -> tuple[Tensor, Metrics]:
        x, net, t = batch.x, self.nets["energy"], None
        assert x is not None  # the loop supplies data to a method that has some
        own = bare(net)
        if self.config.dequantise:
            x = x + self.config.dequantise * (rows.rand(x.shape, gen, device=self.where) - 0.5)
        slots = None
        if isinstance(net, Remembering):
            order = torch.randperm(len(net.chains), generator=rows.common(gen), device=self.where)
            slots = rows.mine(order[: rows.size(gen) * batch.n], gen)
        if self.ladder:
            count = len(self.ladder)
            index = rows.randint(count, (batch.n,), gen, device=self.where) if slots is None else slots % count
            t = torch.tensor(self.ladder, device=self.where)[index]
            noise = rows.randn(x.shape, gen, device=self.where)
            x = x + t.reshape(-1, *(1,) * (x.dim() - 1)) * noise

        def at_levels(z: Tensor) -> Tensor:
            out: Tensor = own(z) if t is None else own(z, t.repeat(len(z) // len(t)))
            return out

        found = self.loss(Given(at_levels, own, x, t, drawn(gen), gen, slots, batch))
        positive, negative = found.positive, found.negative
        gap = (negative - positive).mean().detach()
        if not bool(gap.abs() < self.config.limit) and bool(gap.isfinite()):
            apart = f"energies of data and negatives differ by {float(gap):.4g}, more than method.limit"
            raise NotFinite(f"step {step}: {apart}: diverged")
        loss = found.loss.mean()
        if self.config.penalty:
            loss = loss + self.config.penalty * (positive.square() + negative.square()).mean()
        return loss, {"gap": gap, "energy": positive.mean().detach(), "spread": positive.detach().std()}

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Samples of the average from noise, its landscape where there is one, and quick figures."""
        from gentk.tasks.train_ebm._showing import Showing

        return Showing(self, bare(averaged["energy"])).glance()

    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Figures of the average, and the average itself, with the mean energy of the data as its zero."""
        from gentk.tasks.train_ebm._showing import Showing

        net = copy.deepcopy(bare(averaged["energy"]))
        settle(net, self.data.batch(torch.arange(min(len(self.data), 5000)))[0].to(self.where))
        shown = Showing(self, net).all()
        return Result(shown.metrics, shown.pictures, exports={"energy": Export(net, self.header())})

    def header(self) -> dict[str, Any]:
        """What the exported file says of itself."""
        return {
            "kind": "energy",
            "net": self.recipe.net.model_dump(mode="json"),
            "levels": list(self.ladder) or None,
            "data": {
                "name": self.data.name,
                "shape": self.data.shape,
                "classes": 0,
                "section": self.recipe.data.model_dump(mode="json"),
            },
            "licence": "Apache-2.0",
        }


def bare(net: nn.Module) -> Energy:
    """The energy itself."""
    own = net.energy if isinstance(net, Remembering) else net
    assert isinstance(own, Energy)
    return own


@torch.no_grad()  # a measurement
def settle(net: Energy, x: Tensor) -> None:
    """Makes the mean energy of x (N, ...) zero: a fit leaves the constant free, and it drifts (T11)."""
    mean = torch.cat([net(part) for part in torch.split(x, 500)]).mean()
    net.offset.add_(mean)
