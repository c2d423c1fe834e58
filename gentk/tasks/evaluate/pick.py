"""PickScore of images with their prompts (arXiv:2305.01569)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gentk.tasks.evaluate import PromptSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.tasks.evaluate._scores import Scorer

DONE_BY = "_scores"
NEEDS = "prompts"


class Config(PromptSettings):
    """Settings of the score."""

    name: Literal["pick"]


def scorer(config: Any, where: torch.device, seed: int) -> Scorer:
    """What scores one batch."""
    from gentk.rewards import pick as reward
    from gentk.tasks.evaluate._scores import Scorer, in_colour

    net = reward.build(config.weights, where=where)

    def score(x: torch.Tensor, _: Any, prompts: Any) -> torch.Tensor:
        out: torch.Tensor = net(in_colour(x).to(where), list(prompts)).detach()
        return out

    return Scorer(score, dict(net.record))
