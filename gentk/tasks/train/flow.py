"""Flow matching on straight paths: a rectified flow, or conditional flow matching with optimal-transport pairs.

Lipman et al. 2023 (arXiv:2210.02747), Liu et al. 2023 (arXiv:2209.03003), Tong et al. 2024 (arXiv:2302.00482).

    symbol   meaning
    x0, x1   data and noise: t = 1 is noise (the paper on conditional flow matching has its time the other way round)
    x_t      (1 - t) x0 + t x1
    v        the network, fitted to x1 - x0; drawing follows dx/dt = v from t = 1 down to 0
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gentk.recipe.schema import Predicts, Process, RectifiedFlow, Times, UniformTime
from gentk.tasks.train import DenoiserSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch
    from torch import Tensor

    from gentk.engine.method import Trainable


class Config(DenoiserSettings):
    """Settings of the flow; times t in [0, 1], 1 is noise."""

    name: Literal["flow"]
    process: Process = Field(
        RectifiedFlow(name="rectified-flow"), description="the coordinates that the network works in"
    )
    predicts: Predicts = Field("flow", description="what the network's output means; flow: the velocity itself")
    noise: Times = Field(UniformTime(name="uniform"), description="law of the time in training")
    coupling: Literal["independent", "ot", "ot-per-class"] = Field(
        "independent", description="pairs of data and noise: at random, or by optimal transport within a micro-batch"
    )


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.losses import matching
    from gentk.losses.coupling import paired
    from gentk.tasks.train._denoising import Denoising

    config: Config = recipe.method

    def pair(x0: Tensor, x1: Tensor, labels: Tensor | None) -> Tensor:
        return paired(config.coupling, x0, x1, labels)

    return Denoising(recipe, where, matching.flow, pair)
