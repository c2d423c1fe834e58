"""Frechet distance in the features of a small MNIST network, for 28 x 28 grey images (not an FID)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gentk.tasks.evaluate import ImageSettings, Measure

DONE_BY = "_distribution"
MEASURE: Measure = "fd"


class Config(ImageSettings):
    """Settings of the measurement."""

    name: Literal["fd-mnist-cnn"]
    features: Literal["mnist-cnn"] = Field("mnist-cnn", description="the feature network")
