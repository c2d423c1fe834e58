"""LAION's aesthetic score of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gentk.tasks.evaluate import ScoreSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.tasks.evaluate._scores import Scorer

DONE_BY = "_scores"
NEEDS = None


class Config(ScoreSettings):
    """Settings of the score."""

    name: Literal["aesthetic"]
    head: str | None = Field(None, description="file of the head; null: version 2, where it is looked for")


def scorer(config: Any, where: torch.device, seed: int) -> Scorer:
    """What scores one batch."""
    from gentk.rewards import aesthetic as reward
    from gentk.tasks.evaluate._scores import Scorer, in_colour

    net = reward.build(config.weights, where=where, head=None if config.head is None else Path(config.head))

    def score(x: torch.Tensor, _: Any, prompts: Any) -> torch.Tensor:
        out: torch.Tensor = net(in_colour(x).to(where), None).detach()
        return out

    return Scorer(score, dict(net.record))
