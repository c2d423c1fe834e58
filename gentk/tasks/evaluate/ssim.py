"""Structural similarity of images to their references."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gentk.tasks.evaluate import ScoreSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.tasks.evaluate._scores import Scorer

DONE_BY = "_scores"
NEEDS = "pairs"


class Config(ScoreSettings):
    """Settings of the score."""

    name: Literal["ssim"]


def scorer(config: Any, where: torch.device, seed: int) -> Scorer:
    """What scores one batch."""
    from gentk.metrics.paired import ssim
    from gentk.tasks.evaluate._scores import Scorer

    facts = {"data_range": 255, "window": "Gaussian 11 x 11, deviation 1.5", "average": "per image"}
    return Scorer(lambda x, y, _: ssim(x, y, data_range=255), facts)
