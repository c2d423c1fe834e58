"""Prompts as conditions of the one-step core (`gentk.engine.one_step.Conditions`): embedded once, drawn by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gentk.nets.text.encoders import Prompter
from gentk.nets.text.prompts import Prompts
from gentk.processes import rows


@dataclass(frozen=True)
class PromptList:
    """N prompts with their embeddings on the CPU, and the null prompt (B = 1)."""

    texts: tuple[str, ...]
    embedded: Prompts
    null: Prompts

    @classmethod
    def of(cls, texts: Sequence[str], prompter: Prompter, where: torch.device) -> PromptList:
        """Embeds `texts` with the encoders on device `where`, and frees them."""
        home = torch.device("cpu") if where.type == "meta" else where  # embeddings are numbers, also for a plan
        found = prompter.encode(list(texts), home), prompter.null(home)
        prompter.release()
        return cls(tuple(texts), *(each.to("cpu") for each in found))

    @property
    def count(self) -> int:
        """The number of prompts."""
        return len(self.texts)

    def draw(self, n: int, gen: torch.Generator, where: torch.device) -> Prompts:
        """n prompts, uniform with repetition, by `gen` alone."""
        return self.take(rows.randint(self.count, (n,), gen, device=gen.device), where)

    def take(self, index: Tensor, where: torch.device) -> Prompts:
        """Those of the numbers `index` (n,) int64."""
        return self.embedded[index.cpu()].to(where)

    def hide(self, cond: Prompts, hidden: Tensor) -> Prompts:
        """The null prompt where `hidden` (n,) is true."""
        return cond.where(hidden, self.null)
