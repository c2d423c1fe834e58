"""Prompt lists: in memory or in files, the same prompts; embedded once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gentk.engine import prompt_list
from gentk.engine.prompt_list import PromptList
from gentk.nets.text.prompts import Prompts

CPU = torch.device("cpu")
TEXTS = ("a", "b", "a cat", "b")


class Encoders:
    """Embeddings that depend on the words alone, in the forms of SD3: bfloat16, with a pooled vector."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.where: set[str] = set()
        self.freed = 0

    def encode(self, texts: Sequence[str], where: torch.device) -> Prompts:
        self.asked += texts
        self.where.add(torch.device(where).type)
        parts = []
        for text in texts:
            gen = torch.Generator().manual_seed(int(hashlib.sha256(text.encode()).hexdigest()[:8], 16))
            low = torch.randn(1, 5, 3, generator=gen).bfloat16()
            parts.append(Prompts(low, (torch.arange(5) < len(text))[None].long(), torch.randn(1, 2, generator=gen)))
        return Prompts.cat(parts)

    def null(self, where: torch.device) -> Prompts:
        return self.encode([""], where)

    def release(self) -> None:
        self.freed += 1

    def fingerprint(self) -> str:
        return "these"


def same(a: Prompts, b: Prompts) -> bool:
    x, y = a.tensors(), b.tensors()
    return x.keys() == y.keys() and all(x[k].dtype == y[k].dtype and torch.equal(x[k], y[k]) for k in x)


def test_in_files_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENTK_CACHE", str(tmp_path))
    encoders: Any = Encoders()
    held = PromptList.of(TEXTS, encoders, CPU)
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(prompt_list, "HELD", 4 * (5 * 3 * 2 + 5 * 8 + 2 * 4) - 1)  # one byte less than these take
    filed = PromptList.of(TEXTS, encoders, CPU)
    assert encoders.freed == 2
    assert same(held.embedded, filed.embedded)
    assert same(held.null, filed.null)
    gen = (torch.Generator().manual_seed(3) for _ in range(2))
    assert same(*(each.draw(9, g, CPU) for each, g in zip((held, filed), gen, strict=True)))
    files = {p.name: p.stat().st_size for p in (tmp_path / "prompts" / "lists").rglob("*") if p.is_file()}
    assert files == {"embeds": 4 * 5 * 3 * 2, "mask": 4 * 5 * 8, "pooled": 4 * 2 * 4, "whole": 0}
    encoders.asked.clear()
    again = PromptList.of(TEXTS, encoders, CPU)
    assert encoders.asked == [""], "written once; the null prompt alone is asked for"
    assert same(held.embedded, again.embedded)
    PromptList.of((*TEXTS, "c"), encoders, CPU)
    assert encoders.asked[1:] == ["", *TEXTS, "c"], "another list"
    marks = [mark.unlink() for mark in tmp_path.rglob("whole")]
    encoders.asked.clear()
    assert same(PromptList.of(TEXTS, encoders, CPU).embedded, held.embedded)
    assert len(marks) == 2
    assert encoders.asked == ["", *TEXTS], "what broke off is written anew"


def test_a_plan_needs_their_sizes_only() -> None:
    encoders: Any = Encoders()
    made = PromptList.of(TEXTS, encoders, torch.device("meta"))
    assert encoders.where == {"cpu"}, "there is no encoding without numbers"
    drawn = made.draw(3, torch.Generator(), torch.device("meta"))
    assert drawn.embeds.device.type == "meta"
    assert drawn.embeds.shape == (3, 5, 3)
