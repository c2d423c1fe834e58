"""Human preference score v2 of images with their prompts (arXiv:2306.09341)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gentk.tasks.evaluate import PromptSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.tasks.evaluate._scores import Scorer

DONE_BY = "_scores"
NEEDS = "prompts"


class Config(PromptSettings):
    """Settings of the score."""

    name: Literal["hps"]
    version: Literal["2.0", "2.1"] = Field("2.1", description="the two are not comparable")


def scorer(config: Any, where: torch.device, seed: int) -> Scorer:
    """What scores one batch."""
    from gentk.rewards import hps as reward
    from gentk.tasks.evaluate._scores import Scorer, in_colour

    net = reward.build(None if config.weights is None else Path(config.weights), where=where, version=config.version)

    def score(x: torch.Tensor, _: Any, prompts: Any) -> torch.Tensor:
        out: torch.Tensor = net(in_colour(x).to(where), list(prompts)).detach()
        return out

    return Scorer(score, dict(net.record))
