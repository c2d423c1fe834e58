"""Point restoration by gradient of the misfit (DPS, arXiv:2209.14687): any operator, no uncertainty."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from gentk.recipe.schema import Section


class Config(Section):
    """Settings of the restorer."""

    name: Literal["dps"]
    scale: PositiveFloat = Field(0.3, description="step along the gradient of an image's own |y - H D|")
    units: Literal["vp", "ve"] = Field(
        "vp",
        description="coordinates of the step: images and noise of variance 1 together (the paper's), or x0 + s eps",
    )
