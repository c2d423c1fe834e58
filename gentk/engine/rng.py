"""Keyed randomness: every draw comes from a key, none from a generator that is carried along.

The key is a hash of what the draw is for, such as (seed, step, phase, micro-batch). A resumed run therefore needs no
saved generator state, and sample k is the same whatever the batch it is drawn in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from gentk.processes.rows import Rows


def key(*parts: int | str) -> int:
    """A 63-bit integer that depends on every part and on their order."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by `key(*parts)`."""
    return torch.Generator(device).manual_seed(key(*parts))


def shared(rank: int, size: int, *parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """`generator(*parts)` for a batch that `size` processes share: this one's rows are those of one process."""
    whole = generator(*parts, device=device)
    return whole if size == 1 else Rows(whole, key(*parts, "rank", rank), rank, size)


def alike(gen: torch.Generator, *parts: int | str) -> torch.Generator:
    """Another generator of these parts, for the rows that `gen` is for."""
    if not isinstance(gen, Rows):
        return generator(*parts, device=gen.device)
    return shared(gen.rank, gen.size, *parts, device=gen.device)


def reseed(seed: int, where: torch.device) -> None:
    """The global generators that a step on device `where` draws from.

    As torch.manual_seed, which also notes a call and its traceback for each kind of device that is not there: more work
    than the step of a small network.
    """
    torch.default_generator.manual_seed(seed)
    if where.type == "cuda":
        torch.cuda.manual_seed(seed)


def noise(seed: int, first: int, n: int, shape: tuple[int, ...], *, purpose: str = "noise") -> Tensor:
    """Standard normal (n, *shape) float32 on the CPU; row i depends on (seed, purpose, first + i) alone."""
    gen = torch.Generator()
    rows = [torch.randn(shape, generator=gen.manual_seed(key(seed, purpose, first + i))) for i in range(n)]
    return torch.stack(rows)


def streams(seed: int, first: int, n: int, *, purpose: str) -> Callable[[Tensor], Tensor]:
    """A source noise(x) -> standard normal of x's shape (n, ...); row i of call k depends on (first + i, k) alone.

    Drawn in float32 on the CPU, then moved: the same numbers on every device. Costs nothing until it is called.
    """
    own: list[torch.Generator] = []

    def noise(x: Tensor) -> Tensor:
        if not own:
            own.extend(generator(seed, purpose, first + i) for i in range(n))
        return torch.stack([torch.randn(x.shape[1:], generator=gen) for gen in own]).to(x)

    return noise


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """The order in which epoch `epoch` visits n items: (n,) int64."""
    return torch.randperm(n, generator=generator(seed, "order", epoch))


def indices(seed: int, start: int, count: int, n: int) -> Tensor:
    """Entries `start` to `start + count` of the endless sequence of shuffled epochs over n items: (count,) int64."""
    first, last = start // n, (start + count - 1) // n
    epochs = torch.cat([permutation(seed, e, n) for e in range(first, last + 1)])
    return epochs[start - first * n :][:count]
