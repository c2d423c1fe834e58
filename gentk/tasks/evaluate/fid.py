"""Frechet Inception distance (arXiv:1706.08500) by a named protocol."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gentk.tasks.evaluate import ImageSettings, Measure

DONE_BY = "_distribution"
MEASURE: Measure = "fd"


class Config(ImageSettings):
    """Settings of the measurement."""

    name: Literal["fid"]
    features: Literal["edm", "clean", "legacy-pytorch"] = Field(
        "edm", description="protocol: network, resize and range; figures of different ones never compare"
    )
