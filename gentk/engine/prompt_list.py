"""Prompts as conditions of the one-step core (`gentk.engine.one_step.Conditions`): embedded once, drawn by number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gentk.nets.text.encoders import Prompter
from gentk.nets.text.prompts import Prompts
from gentk.processes import rows
from gentk.recipe import store

HELD = 2**31  # bytes of embeddings that are held in memory


@dataclass(frozen=True)
class PromptList:
    """N prompts with their embeddings on the CPU, and the null prompt (B = 1).

    Embeddings of more than HELD bytes lie in files of gentk's cache, of which the system reads what is asked for.
    """

    texts: tuple[str, ...]
    embedded: Prompts
    null: Prompts

    @classmethod
    def of(cls, texts: Sequence[str], prompter: Prompter, where: torch.device) -> PromptList:
        """Embeds `texts` with the encoders on device `where`, and frees them."""
        home = torch.device("cpu") if where.type == "meta" else where  # embeddings are numbers, also for a plan
        null = prompter.null(home).to("cpu")
        size = len(texts) * sum(x.numel() * x.element_size() for x in null.tensors().values())
        found = _filed(texts, prompter, home, null) if size > HELD else prompter.encode(list(texts), home).to("cpu")
        prompter.release()
        return cls(tuple(texts), found, null)

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


def _filed(texts: Sequence[str], prompter: Prompter, home: torch.device, like: Prompts) -> Prompts:
    """The embeddings in files, shaped as `like` (B = 1) is; written once, `whole` says that they are."""
    key = hashlib.sha256("\0".join([prompter.fingerprint(), *texts]).encode()).hexdigest()
    folder = store.cache() / "prompts" / "lists" / key
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Tensor] = {}
    for name, x in like.tensors().items():
        count = len(texts) * x.numel()
        flat = torch.from_file(str(folder / name), shared=True, size=count, dtype=x.dtype)
        parts[name] = flat.view(len(texts), *x.shape[1:])
    if not (folder / "whole").exists():
        for k, text in enumerate(texts):
            for name, x in prompter.encode([text], home).tensors().items():
                parts[name][k] = x[0].to("cpu")
        (folder / "whole").touch()
    return Prompts(**parts)
