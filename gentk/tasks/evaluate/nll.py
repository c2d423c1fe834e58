"""Bits per dimension of MNIST images under a pretrained flow, a judge that no generator here was fitted to."""

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

    name: Literal["nll"]
    judge: Literal["flow-vardeq", "flow-simple"] = Field(
        "flow-vardeq", description="the flow: learned or uniform noise"
    )


def scorer(config: Any, where: torch.device, seed: int) -> Scorer:
    """What scores one batch."""
    from gentk.engine import rng
    from gentk.metrics import nll
    from gentk.tasks.evaluate._scores import Scorer

    judge = nll.load(config.judge, weights=None if config.weights is None else Path(config.weights), where=where)
    gen = rng.generator(seed, "dequantisation")
    return Scorer(lambda x, *_: judge(x, gen), dict(judge.facts))
