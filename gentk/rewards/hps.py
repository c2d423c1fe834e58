"""Human preference score v2 (Wu et al. 2023, arXiv:2306.09341): 100 times the cosine of a tuned OpenCLIP ViT-H/14.

In float32, where the official code's half precision rounds to 0.02 of these points. The versions 2.0 and 2.1 are two
networks on two scales; tables say which. Pictures are letterboxed, not cropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from gentk.metrics import states
from gentk.metrics.registry import HPS_V2, HPS_V21
from gentk.recipe.weights import Weights
from gentk.rewards import pixels, towers

Version = Literal["2.0", "2.1"]

WEIGHTS: dict[Version, Weights] = {"2.0": HPS_V2, "2.1": HPS_V21}


class Hps(nn.Module):
    """`score(images, prompts)` -> (N,) float32, about 20 to 35; the package hpsv2 gives a hundredth of it."""

    def __init__(self, clip: towers.Towers, version: Version, antialias: bool) -> None:
        super().__init__()
        self.clip, self.antialias = clip, antialias
        self.record = {"metric": "hps", "version": version, "antialias": antialias} | clip.record

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (N, 3, H, W), uint8 or float in [0, 1], and N prompts -> (N,)."""
        x = pixels.letterbox(pixels.check(images, prompts), self.clip.side, antialias=self.antialias)
        return 100 * (self.clip.image(x) * self.clip.text(prompts)).sum(-1)


def build(
    weights: Path | None = None,
    *,
    where: torch.device,
    offline: bool = False,
    version: Version = "2.1",
    antialias: bool = True,
    architecture: str = "ViT-H-14",
) -> Hps:
    """The score of `version` by its checkpoint, here in `weights` or to be found.

    `antialias=False` is the resize of torchvision before 0.17. Raises MissingAsset for what is absent, GentkError for
    weights of another network.
    """
    path = states.locate(WEIGHTS[version], weights, offline)
    return states.frozen(Hps(towers.OpenClipTowers(path, architecture, where), version, antialias), where)
