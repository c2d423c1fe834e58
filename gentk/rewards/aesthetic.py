"""Aesthetic score: a small head on CLIP ViT-L/14 embeddings of length 1 (LAION; Schuhmann et al. 2022).

The head of version 2, which papers mean, is 768-1024-128-64-16-1 without activations: in evaluation an affine map.
Version 1 is one linear layer. The two scales differ, so `record` names the head's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentk.errors import GentkError
from gentk.metrics import states
from gentk.metrics.registry import AESTHETIC_V2, CLIP_VITL14
from gentk.rewards import pixels, towers


class Head(nn.Module):
    """`head(e)`: (N, width) -> (N,): five linear layers, with dropout but no activation between them.

    ImageReward ends in one as well.
    """

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        # The layers are counted with their dropouts in the published keys: 0, 2, 4, 6, 7.
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, e: Tensor) -> Tensor:
        """Embeddings e (N, width) -> (N,)."""
        out: Tensor = self.layers(e).squeeze(-1)
        return out


class Linear(nn.Linear):
    """`head(e)`: (N, width) -> (N,): the head of version 1."""

    def forward(self, e: Tensor) -> Tensor:
        """Embeddings e (N, width) -> (N,)."""
        return super().forward(e).squeeze(-1)


class Aesthetic(nn.Module):
    """`score(images, prompts)` -> (N,) float32, about 1 to 10; prompts are not looked at."""

    def __init__(self, clip: towers.Towers, head: nn.Module, record: dict[str, Any]) -> None:
        super().__init__()
        self.clip, self.head = clip, head
        self.record = {"metric": "aesthetic"} | record | clip.record

    def forward(self, images: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Images (N, 3, H, W), uint8 or float in [0, 1] -> (N,)."""
        out: Tensor = self.head(self.clip.image(pixels.crop(pixels.check(images, prompts), self.clip.side)))
        return out


def build(
    weights: Path | str | None = None, *, where: torch.device, offline: bool = False, head: Path | None = None
) -> Aesthetic:
    """The score by CLIP `weights` (an open_clip file, a transformers folder or hub id; None: OpenAI's) and `head`.

    Raises MissingAsset for what is absent, GentkError for weights of another network.
    """
    path = states.locate(AESTHETIC_V2, head, offline, "name the file by --set method.head=PATH")
    layers = load_head(path)
    version = 1 if isinstance(layers, Linear) else 2
    encoder = towers.load(weights, CLIP_VITL14, "ViT-L-14-quickgelu", where=where, offline=offline)
    return states.frozen(Aesthetic(encoder, layers, {"version": version, "head": path.name}), where)


def load_head(path: Path) -> nn.Module:
    """The head of version 1 or 2 in `path`, by its keys. Raises GentkError for another."""
    state = states.read(path)
    first = state.get("weight", state.get("layers.0.weight"))
    if first is None or first.ndim != 2:
        raise GentkError(f"{path}: not an aesthetic head, which has `layers.0.weight` (version 2) or `weight` (1)")
    net = Linear(first.shape[1], 1) if "weight" in state else Head(first.shape[1])
    states.fill(net, state, path)
    return net.eval()
