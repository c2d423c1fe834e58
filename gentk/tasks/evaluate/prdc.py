"""Precision, recall, density and coverage (arXiv:2002.09797)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gentk.tasks.evaluate import ImageSettings, Measure

DONE_BY = "_distribution"
MEASURE: Measure = "prdc"


class Config(ImageSettings):
    """Settings of the measurement."""

    name: Literal["prdc"]
    features: Literal["edm", "clean", "legacy-pytorch", "fd-dinov2", "resnet20", "mnist-cnn", "fashion-mlp"] = Field(
        "edm", description="protocol: network, resize and range; figures of different ones never compare"
    )
