"""Random rows of a batch that several processes share: each draws the whole batch's numbers and keeps its own rows.

Row k is then the same number in any world size, which costs each process the drawing of the others' rows. With an
ordinary torch.Generator, so with one process, every function is torch's own, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...] | torch.Size


class Rows(torch.Generator):
    """The generator of one process among `size`: by itself a stream of its own, different from the others'.

    Numbers that a method draws from it directly are right in law, but not those of one process. `common` is the same
    on all: what the functions here draw from.
    """

    common: torch.Generator
    rank: int
    size: int

    # torch.Generator makes itself in __new__ and takes no seed there
    def __new__(cls, common: torch.Generator, own: int, rank: int, size: int) -> Rows:
        """`own`: the seed of the process's own stream."""
        return super().__new__(cls, common.device)  # type: ignore[call-arg]

    def __init__(self, common: torch.Generator, own: int, rank: int, size: int) -> None:
        self.common, self.rank, self.size = common, rank, size
        self.manual_seed(own)


def common(gen: torch.Generator) -> torch.Generator:
    """The generator that gives the same numbers on all processes."""
    return gen.common if isinstance(gen, Rows) else gen


def size(gen: torch.Generator) -> int:
    """Among how many processes the batch is divided."""
    return gen.size if isinstance(gen, Rows) else 1


def mine(x: Tensor, gen: torch.Generator, dim: int = 0) -> Tensor:
    """This process's rows of a tensor for the whole batch, along `dim`, whose length its size must divide."""
    if not isinstance(gen, Rows):
        return x
    n, rest = divmod(x.shape[dim], gen.size)
    if rest:
        raise ValueError(f"{x.shape[dim]} rows cannot be divided among {gen.size} processes")
    return x.narrow(dim, gen.rank * n, n)


def randn(shape: Shape, gen: torch.Generator, **how: Any) -> Tensor:
    """Standard normal numbers of this shape: this process's rows, `shape[0]` of them. `how`: dtype and device."""
    return _drawn(torch.randn, shape, gen, 0, how)


def rand(shape: Shape, gen: torch.Generator, **how: Any) -> Tensor:
    """Uniform numbers in [0, 1), likewise."""
    return _drawn(torch.rand, shape, gen, 0, how)


def randint(high: int, shape: Shape, gen: torch.Generator, *, dim: int = 0, **how: Any) -> Tensor:
    """Integers from 0 to high - 1, likewise; the rows lie along `dim`."""
    return _drawn(lambda shape, **how: torch.randint(high, shape, **how), shape, gen, dim, how)


def _drawn(draw: Callable[..., Tensor], shape: Shape, gen: torch.Generator, dim: int, how: dict[str, Any]) -> Tensor:
    whole = list(shape)
    whole[dim] *= size(gen)
    return mine(draw(tuple(whole), generator=common(gen), **how), gen, dim)
