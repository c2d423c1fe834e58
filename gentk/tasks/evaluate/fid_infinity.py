"""Frechet distance extrapolated to infinitely many samples (arXiv:1911.07023)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gentk.tasks.evaluate import ImageSettings, Measure

DONE_BY = "_distribution"
MEASURE: Measure = "infinity"


class Config(ImageSettings):
    """Settings of the measurement."""

    name: Literal["fid-infinity"]
    features: Literal["edm", "clean", "legacy-pytorch", "fd-dinov2", "resnet20", "mnist-cnn", "fashion-mlp"] = Field(
        "edm", description="protocol: network, resize and range; figures of different ones never compare"
    )
