"""Frechet distance in the features of CIFAR-10's ResNet-20, for 32 x 32 RGB images (not an FID)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gentk.tasks.evaluate import ImageSettings, Measure

DONE_BY = "_distribution"
MEASURE: Measure = "fd"


class Config(ImageSettings):
    """Settings of the measurement."""

    name: Literal["fd-resnet20"]
    features: Literal["resnet20"] = Field("resnet20", description="the feature network")
