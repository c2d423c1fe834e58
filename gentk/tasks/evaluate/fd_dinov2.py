"""Frechet distance in the features of DINOv2 (arXiv:2306.04675)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gentk.tasks.evaluate import ImageSettings, Measure

DONE_BY = "_distribution"
MEASURE: Measure = "fd"


class Config(ImageSettings):
    """Settings of the measurement."""

    name: Literal["fd-dinov2"]
    features: Literal["fd-dinov2"] = Field(
        "fd-dinov2", description="protocol: network, resize and range; figures of different ones never compare"
    )
