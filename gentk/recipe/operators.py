"""The `operator:` section: how an image becomes what was measured, but for the noise. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from gentk.recipe.section import Fraction, Section


class Noise(Section):
    """The image itself: all that was done to it is the noise."""

    name: Literal["noise"]


class Inpaint(Section):
    """Pixels at random, each kept with a probability of its image's own, or a mask for all images."""

    name: Literal["inpaint"]
    keep: tuple[Fraction, Fraction] = Field(
        (0.5, 0.5), description="an image's share of kept pixels is drawn from this range"
    )
    mask: str | None = Field(
        None, description="file of one mask for all images instead: .npz (key `mask`), .npy or a picture; above 0: kept"
    )
    corner: tuple[NonNegativeInt, NonNegativeInt] = Field(
        (0, 0), description="row and column of the mask's part that is used, where it is larger than the images"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.keep
        if low > high:
            raise ValueError(f"keep: {low:g} is above {high:g}")
        if high == 0:
            raise ValueError("keep: not one pixel would be kept")
        return self


class Box(Section):
    """A rectangle is hidden, in the middle or at a place drawn for each image."""

    name: Literal["box"]
    height: PositiveInt = Field(4, description="rows hidden")
    width: PositiveInt = Field(4, description="columns hidden")
    place: Literal["middle", "random"] = Field(
        "middle", description="where: the same for all images, or drawn for each"
    )


class Blur(Section):
    """Convolution with a Gaussian, periodic at the edges."""

    name: Literal["blur"]
    size: PositiveInt = Field(5, description="side of the kernel in pixels, odd")
    std: PositiveFloat = Field(1.0, description="its standard deviation in pixels")


class MotionBlur(Section):
    """Mean over a straight line of pixels, periodic at the edges."""

    name: Literal["motion-blur"]
    length: PositiveFloat = Field(3.0, description="length of the line in pixels")
    angle: float = Field(0.0, description="its direction in degrees, from right to up")


class Downsample(Section):
    """Mean of square blocks."""

    name: Literal["downsample"]
    factor: Annotated[int, Field(ge=2)] = Field(2, description="side of a block")


class Grey(Section):
    """Luminance of a colour image (ITU-R 601, as pictures are turned grey elsewhere)."""

    name: Literal["grey"]


Simple = Annotated[Noise | Inpaint | Box | Blur | MotionBlur | Downsample | Grey, Field(discriminator="name")]


class Compose(Section):
    """Several, one after the other."""

    name: Literal["compose"]
    parts: tuple[Simple, ...] = Field(min_length=1, description="operators, the one that sees the image first")


Operator = Annotated[
    Noise | Inpaint | Box | Blur | MotionBlur | Downsample | Grey | Compose, Field(discriminator="name")
]
NAMES = ("noise", "inpaint", "box", "blur", "motion-blur", "downsample", "grey", "compose")
