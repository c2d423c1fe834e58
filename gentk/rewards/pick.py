"""PickScore (Kirstain et al. 2023, arXiv:2305.01569): a tuned CLIP ViT-H/14, exp(logit scale) times the cosine.

The softmax over several pictures of one prompt is the probability that people pick each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gentk.metrics import states
from gentk.recipe import hub
from gentk.rewards import pixels, towers

MODEL = "yuvalkirstain/PickScore_v1"
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_TOKENS = ("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json")


class PickScore(nn.Module):
    """`score(images, prompts)` -> (N,) float32, about 15 to 25."""

    def __init__(self, clip: towers.Towers) -> None:
        super().__init__()
        self.clip = clip
        self.record = {"metric": "pick"} | clip.record

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (N, 3, H, W), uint8 or float in [0, 1], and N prompts -> (N,)."""
        x = pixels.crop(pixels.check(images, prompts), self.clip.side)
        return self.clip.logit_scale * (self.clip.image(x) * self.clip.text(prompts)).sum(-1)


def build(weights: Path | str | None = None, *, where: torch.device, offline: bool = False) -> PickScore:
    """The score by the transformers folder or hub id `weights`; its tokenizer lies there or is fetched.

    Raises MissingAsset for what is absent, GentkError for a folder that holds something else.
    """
    place = hub.folder(weights or MODEL, offline=offline)
    own = any((place / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    tokenizer = place if own else hub.folder(TOKENIZER, offline=offline, files=_TOKENS, needed="vocab.json")
    encoder = towers.TransformersTowers(place, str(weights or MODEL), where, quick_gelu=False, tokenizer=tokenizer)
    return states.frozen(PickScore(encoder), where)
