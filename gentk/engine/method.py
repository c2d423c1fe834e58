"""What a trainable method is to the engine: networks, losses that move them, and what to show and keep of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from gentk.engine.dist import Group
from gentk.recipe.schema import Optimiser

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """A micro-batch: `n` samples, with data and labels where the method learns from data.

    Of several processes each has its rows, n of them; rows of `group` are in the order of one process.
    """

    n: int
    x: Tensor | None = None
    y: Tensor | None = None
    group: Group = field(default_factory=Group)

    def whole(self, x: Tensor) -> Tensor:
        """The rows of all processes, (n, ...) -> (size n, ...), without graph."""
        return self.group.rows(x)

    def mine(self, x: Tensor) -> Tensor:
        """This process's rows of what is there for all, (size n, ...) -> (n, ...)."""
        return x.narrow(0, self.group.rank * self.n, self.n) if self.group.size > 1 else x


@dataclass(frozen=True)
class Phase:
    """One optimiser update: the only networks that have gradients (and are in train mode), and the loss.

    `loss(batch, gen)` returns a scalar and figures for the log; every random number comes from `gen`, or from torch's
    global generator (dropout), which the engine keys likewise. Numbers for rows are drawn by `gentk.processes.rows`,
    so that several processes that share a batch draw what one would.
    """

    name: str
    nets: tuple[str, ...]
    loss: Callable[[Batch, torch.Generator], tuple[Tensor, Metrics]]


class Data(Protocol):
    """A data set as the loop sees it."""

    def __len__(self) -> int:
        """The number of samples."""
        ...

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Samples and labels at `index` (n,): float32 (n, ...) and int64 (n,) or None."""
        ...


class Trainable(Protocol):
    """A method, built: data plus losses. See tasks/distill/sim.py for one."""

    @property
    def nets(self) -> Mapping[str, nn.Module]:
        """The networks that learn, by name."""
        ...

    @property
    def ema(self) -> tuple[str, ...]:
        """Names of the networks whose weights are averaged."""
        ...

    @property
    def optim(self) -> Mapping[str, Optimiser]:
        """The optimiser settings of each network, by the network's name."""
        ...

    @property
    def data(self) -> Data | None:
        """The data that batches are drawn from; None for a method that learns without."""
        ...

    def phases(self, step: int) -> Iterator[Phase]:
        """The updates of one step; plain code between yields runs between updates."""
        ...

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Pictures and quick figures of the current state; the figures are logged as `eval/NAME`.

        Models among them are kept while their figure `fd` is the least so far.
        """
        ...

    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        """What is left when the last step is done: the figures and the models to keep."""
        ...


@dataclass(frozen=True)
class Export:
    """A model to write into `export/`: its network and its header (see recipe/stamp.py)."""

    net: nn.Module
    header: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """Figures, pictures and models: what a preview shows and a finished run keeps."""

    metrics: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Image] = field(default_factory=dict)
    exports: dict[str, Export] = field(default_factory=dict)
    remarks: tuple[dict[str, str], ...] = ()
    """What is said in words, each once: `name`, `words` and `kind`: `flag` (an alarm), `warning` or `note`."""
    halt: bool = False
    """Of a preview: the training ends here."""
    rank: float | None = None
    """Of a preview: what the best models are kept by, least first; None: its figure `fd`."""
