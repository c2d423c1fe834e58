"""Inception score (arXiv:1606.03498)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gentk.tasks.evaluate import ImageSettings, Measure

DONE_BY = "_distribution"
MEASURE: Measure = "is"


class Config(ImageSettings):
    """Settings of the measurement."""

    name: Literal["is"]
    features: Literal["edm", "clean", "legacy-pytorch"] = Field(
        "edm", description="protocol: network, resize and range; figures of different ones never compare"
    )
