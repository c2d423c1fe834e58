"""What an attack sees of its victim: logits with a choice of gradient, and noise that belongs to the image.

A defence that draws noise reads it from a `Tape`: row i of a tape is a key made of (image id, seed, draw), and every
number drawn from it is a hash of that key, of the use's name and of its place in the row. So neither the batch that an
image stands in nor what was drawn before matters: K copies of a batch with K draws, taken at once, equal a loop over
the copies, a recomputed (checkpointed) step finds its noise again, and an evaluation can move to another device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from gentk.errors import RecipeError

Grad = Literal["full", "bpda", "surrogate", "blind"]
"""full: of purifier and classifier; bpda: the purifier's backward is the identity; surrogate: value and gradient of a
cheaper purifier in its place; blind: value and gradient of the classifier alone."""


@dataclass(frozen=True, eq=False)
class Tape:
    """The noise of a batch: `keys` (B,) int64 on the CPU, one per row; `tape[index]` picks rows, `cat` joins tapes.

    `tape.normal("start", shape)` is the same whenever it is called: a name per use, not a position in a stream.
    """

    keys: Tensor

    @classmethod
    def of(cls, ids: Tensor, seed: int, draw: int = 0) -> Tape:
        """The tape whose row i depends on (ids[i], seed, draw) alone; ids (B,) integers."""
        return cls(_mix(_mix(ids.cpu().long() * _GOLDEN ^ _word(seed)) ^ _word(draw)))

    @classmethod
    def cat(cls, tapes: Sequence[Tape]) -> Tape:
        """The rows of all `tapes`, one after the other."""
        return cls(torch.cat([tape.keys for tape in tapes]))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Tensor | slice) -> Tape:
        return Tape(self.keys[index.cpu() if isinstance(index, Tensor) else index])

    def normal(
        self, name: str | int, shape: Sequence[int], *, like: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Standard normal (B, *shape), float32 unless `like` says otherwise (dtype and device), the same in each dtype.

        By Box and Muller from the two halves of a 64-bit hash, in float64, so that devices agree after rounding.
        """
        where, n = (device if like is None else like.device), math.prod(shape)
        bits = self._bits(name, (n + 1) // 2, where)
        high, low = (bits >> 32).bitwise_and_(_MASK32), bits.bitwise_and_(_MASK32)
        radius = high.double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = low.double().mul_(2 * math.pi * 2.0**-32)
        flat = torch.cat([radius * angle.cos(), angle.sin_().mul_(radius)], 1)[:, :n].float()
        out = flat.reshape(len(self), *shape)
        return out if like is None else out.to(like.dtype)

    def uniform(
        self,
        name: str | int,
        shape: Sequence[int] = (),
        *,
        like: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Uniform on [0, 1) in steps of 2^-24, (B, *shape); dtype and device as in `normal`."""
        where = device if like is None else like.device
        bits = self._bits(name, math.prod(shape), where)
        out = (((bits >> 40) & _MASK24).float() * 2.0**-24).reshape(len(self), *shape)
        return out if like is None else out.to(like.dtype)

    def _bits(self, name: str | int, n: int, device: torch.device | str) -> Tensor:
        """(B, n) int64, all 64 bits random: splitmix64 started at a key of the row and the name."""
        start = _mix(self.keys ^ _word(name))
        return _mix(start.to(device)[:, None] + _counters(n, device))


class Victim(Protocol):
    """A classifier of images x (B, C, H, W) float32 in [0, 1], whatever stands in front of it; frozen, in eval mode."""

    @property
    def classes(self) -> int:
        """The number of classes."""
        ...

    @property
    def random(self) -> bool:
        """Whether the defence draws noise: whether two tapes can give two answers."""
        ...

    @property
    def modes(self) -> tuple[Grad, ...]:
        """The gradients that tell different things of this victim; `logits` takes every mode, the suite tries these."""
        ...

    def tape(self, ids: Tensor, seed: int, draw: int = 0) -> Tape:
        """The noise of images `ids` (B,) int64: row i depends on (ids[i], seed, draw) only."""
        ...

    def logits(self, x: Tensor, tape: Tape, grad: Grad = "full") -> Tensor:
        """Logits (B, classes) of one draw per row, differentiable in x by the gradient `grad` names."""
        ...

    def purify(self, x: Tensor, tape: Tape) -> Tensor:
        """What the classifier is shown in place of x: (B, C, H, W) in [0, 1], without gradient."""
        ...


class Undefended:
    """A `Victim` without a defence: `net` takes images in [0, 1] (its normalisation inside) and returns logits.

    Raises RecipeError where `net` is in train mode: dropout and batch statistics would make another network of it.
    """

    random = False
    modes: tuple[Grad, ...] = ("full",)

    def __init__(self, net: nn.Module, classes: int) -> None:
        in_eval_mode(net)
        self.net, self.classes = net.requires_grad_(False), classes

    def tape(self, ids: Tensor, seed: int, draw: int = 0) -> Tape:
        """A tape that nothing is read from."""
        return Tape.of(ids, seed, draw)

    def logits(self, x: Tensor, tape: Tape, grad: Grad = "full") -> Tensor:
        """Logits of x itself; every mode is the same."""
        out: Tensor = self.net(x)
        return out

    def purify(self, x: Tensor, tape: Tape) -> Tensor:
        """x itself."""
        return x.detach()


def in_eval_mode(net: nn.Module) -> None:
    """Raises RecipeError naming the first module of `net` that is in train mode."""
    for name, module in net.named_modules():
        if module.training:
            raise RecipeError(
                f"the classifier's `{name or type(module).__name__}` is in train mode",
                hint="net.eval(): in train mode dropout and batch statistics answer in the network's place",
            )


def in_range(x: Tensor, what: str = "images") -> None:
    """Raises RecipeError unless x is float32 and within [0, 1]: every budget is in these units."""
    if x.dtype != torch.float32:
        raise RecipeError(
            f"{what}: {str(x.dtype).removeprefix('torch.')}, an attack takes float32 in [0, 1]",
            hint="bytes: x.float() / 255",
        )
    if x.numel() and not (bool((x >= 0).all()) and bool((x <= 1).all())):
        raise RecipeError(
            f"{what}: values from {float(x.min()):.4g} to {float(x.max()):.4g}, an attack takes float32 in [0, 1]",
            hint="images in [-1, 1]: (x + 1) / 2",
        )


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MASK32, _MASK24 = 2**32 - 1, 2**24 - 1


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words, int64 to int64."""
    # int64 products wrap around, as they must; its right shift copies the sign, which the masks take off.
    x = (x >> 30).bitwise_and_(2**34 - 1).bitwise_xor_(x).mul_(0xBF58476D1CE4E5B9 - 2**64)
    x = (x >> 27).bitwise_and_(2**37 - 1).bitwise_xor_(x).mul_(0x94D049BB133111EB - 2**64)
    return (x >> 31).bitwise_and_(2**33 - 1).bitwise_xor_(x)


@lru_cache(maxsize=64)
def _counters(n: int, device: torch.device | str) -> Tensor:
    """What splitmix64 adds to its start for the first n numbers: (n,)."""
    with torch.inference_mode(False):  # kept beyond the mode that it is first asked in
        return torch.arange(1, n + 1, dtype=torch.int64, device=device) * _GOLDEN


@lru_cache(maxsize=4096)
def _word(name: str | int) -> int:
    """A signed 64-bit word of a name or a number."""
    digest = hashlib.blake2b(f"{type(name).__name__}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
