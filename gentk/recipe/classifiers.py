"""The `classifier:` section: which network is defended, and what a bare file of weights does not say of itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from gentk.recipe.section import Section

_Positive = Annotated[float, Field(gt=0)]

ARCHITECTURES = (
    "resnet20", "resnet32", "resnet44", "resnet56", "wrn-28-10", "wrn-70-16", "small-cnn", "two-conv", "resnet4b",
    "cnn_wide", "mlp",
)  # fmt: skip
"""What a file of weights can be said to hold, beside `timm:NAME` and `torchvision:NAME`."""


class Classifier(Section):
    """The classifier that is defended or attacked; its normalisation is inside of it."""

    name: str = Field(
        description="a model's name, a run of `train classifier`, a published name (cifar10_resnet20, ...), a file, "
        "timm:NAME or torchvision:NAME"
    )
    architecture: str | None = Field(
        None, description=f"for a bare file of weights: {', '.join(ARCHITECTURES)}, timm:NAME or torchvision:NAME"
    )
    mean: tuple[float, ...] | None = Field(
        None, description="subtracted from images in [0, 1], per channel; null: as published, or 0"
    )
    std: tuple[_Positive, ...] | None = Field(None, description="and divided by this; null: as published, or 1")
    classes: PositiveInt | None = Field(None, description="classes of a bare file; null: those of the data")
