"""Peak signal-to-noise ratio of images to their references, in dB."""

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

    name: Literal["psnr"]


def scorer(config: Any, where: torch.device, seed: int) -> Scorer:
    """What scores one batch."""
    from gentk.metrics.paired import psnr
    from gentk.tasks.evaluate._scores import Scorer

    # averaged per image, as restoration papers do, and not over the pooled error
    return Scorer(lambda x, y, _: psnr(x, y, data_range=255), {"data_range": 255, "average": "per image"})
