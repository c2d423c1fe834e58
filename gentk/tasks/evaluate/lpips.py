"""Learned perceptual distance of images to their references (arXiv:1801.03924)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gentk.tasks.evaluate import ScoreSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.tasks.evaluate._scores import Scorer

DONE_BY = "_scores"
NEEDS = "pairs"


class Config(ScoreSettings):
    """Settings of the score."""

    name: Literal["lpips"]
    network: Literal["alex", "vgg"] = Field("alex", description="alex is what papers report, vgg what they train with")
    heads: str | None = Field(None, description="file of the linear heads; null: those of an installed torchmetrics")


def scorer(config: Any, where: torch.device, seed: int) -> Scorer:
    """What scores one batch."""
    from gentk.metrics.paired import lpips
    from gentk.tasks.evaluate._scores import Scorer, in_colour

    given: dict[str, Any] = {
        k: None if v is None else Path(v).expanduser() for k, v in (("trunk", config.weights), ("heads", config.heads))
    }
    net = lpips(config.network, where=where, **given)

    def score(x: torch.Tensor, y: torch.Tensor, _: Any) -> torch.Tensor:
        a, b = (in_colour(each).to(where).float() / 127.5 - 1 for each in (x, y))
        out: torch.Tensor = net(a, b).detach()
        return out

    return Scorer(score, {"version": "0.1", "network": config.network})
