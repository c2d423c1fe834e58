"""Frechet distance in the features of a small Fashion-MNIST network, for 28 x 28 grey images (not an FID)."""

from __future__ import annotations

from typing import Literal

from gentk.tasks.evaluate import ImageSettings, Measure

DONE_BY = "_distribution"
FEATURES = "fashion-mlp"
MEASURE: Measure = "fd"


class Config(ImageSettings):
    """Settings of the measurement."""

    name: Literal["fd-fashion-mlp"]
