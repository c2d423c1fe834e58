"""Embedded prompts: the condition of a text-to-image network, batched like the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Prompts:
    """B prompts: `embeds` (B, L, D); `mask` (B, L), 1 at tokens, where the network takes one (PixArt); `pooled` (B, P),
    one vector for the whole prompt, where it does (SD3).
    """

    embeds: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Prompts:
        """The prompts at a slice, a list or a tensor of indices; repetitions are copies."""
        at = index if isinstance(index, slice | Tensor) else torch.tensor(index, dtype=torch.int64)
        return self._each(lambda x: x[at.to(x.device) if isinstance(at, Tensor) else at])

    def to(self, *target: Any) -> Prompts:
        """On another device or in another floating dtype, as Tensor.to takes them; the mask keeps its dtype."""
        devices = [each for each in target if not isinstance(each, torch.dtype)]
        mask = None if self.mask is None else self.mask.to(*devices) if devices else self.mask
        return Prompts(self.embeds.to(*target), mask, None if self.pooled is None else self.pooled.to(*target))

    def expand(self, n: int) -> Prompts:
        """One prompt for a batch of n, without copies."""
        return self._each(lambda x: x.expand(n, *x.shape[1:]))

    def where(self, hidden: Tensor, other: Prompts) -> Prompts:
        """`other` where `hidden` (B,) is true: prompt dropout, with `other` of B prompts or of one, the null prompt."""

        def choose(own: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if own is None or theirs is None:
                return None
            at = hidden.to(own.device).reshape(-1, *(1,) * (own.dim() - 1))
            return torch.where(at, theirs.to(own), own)

        embeds = choose(self.embeds, other.embeds)
        assert embeds is not None
        return Prompts(embeds, choose(self.mask, other.mask), choose(self.pooled, other.pooled))

    @staticmethod
    def cat(parts: Sequence[Prompts]) -> Prompts:
        """All prompts of `parts`, in order."""

        def join(name: str) -> Tensor | None:
            found = [getattr(part, name) for part in parts]
            return None if found[0] is None else torch.cat(found)

        embeds = join("embeds")
        assert embeds is not None
        return Prompts(embeds, join("mask"), join("pooled"))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        every = {"embeds": self.embeds, "mask": self.mask, "pooled": self.pooled}
        return {name: x for name, x in every.items() if x is not None}

    def _each(self, change: Callable[[Tensor], Tensor]) -> Prompts:
        return Prompts(**{name: change(x) for name, x in self.tensors().items()})


class Null(nn.Module):
    """The null prompt of a network: what it is told where it is told nothing. Moves with it, is none of its weights."""

    embeds: Tensor | None
    mask: Tensor | None
    pooled: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        for name in ("embeds", "mask", "pooled"):
            self.register_buffer(name, None, persistent=False)

    def set(self, prompts: Prompts) -> None:
        """Takes the embedding of one prompt."""
        if len(prompts) != 1:
            raise ValueError(f"{len(prompts)} null prompts: one is needed")
        for name, x in prompts.tensors().items():
            setattr(self, name, x.detach().clone())

    def forward(self, cond: Prompts | None, x: Tensor) -> Prompts:
        """`cond`, or the null prompt for every sample of x (B, ...); on x's device and in its dtype."""
        if cond is None:
            if self.embeds is None:
                raise ValueError("the network was given no null prompt: set_null")
            cond = Prompts(self.embeds, self.mask, self.pooled).expand(len(x))
        if len(cond) != len(x):
            raise ValueError(f"{len(cond)} prompts for {len(x)} samples")
        return cond.to(x.device, x.dtype)
