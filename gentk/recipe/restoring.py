"""Sections of methods that learn to restore: the networks of the flow, and what is measured of them. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from gentk.recipe.section import Section


class Glow(Section):
    """A conditional Glow for images (gentk/nets/conditional_flow.py)."""

    name: Literal["glow"]
    levels: PositiveInt = Field(2, description="times that the image is halved")
    steps: PositiveInt = Field(4, description="actnorm, 1 x 1 convolution and coupling per level")
    width: PositiveInt = Field(32, description="channels inside of a coupling")
    features: PositiveInt = Field(16, description="channels of what each level sees of the measurement")
    guide: PositiveInt = Field(48, description="channels of the network that moves and widens the draws")
    guide_blocks: PositiveInt = Field(3, description="its residual blocks, at the image's own resolution")
    bound: PositiveFloat = Field(1.5, description="largest log-scale of a coupling")


class Couplings(Section):
    """Conditional affine couplings for points (gentk/nets/conditional_flow.py)."""

    name: Literal["couplings"]
    steps: PositiveInt = Field(8, description="actnorm, mixing matrix and coupling")
    width: PositiveInt = Field(64, description="hidden units of a coupling")
    depth: PositiveInt = Field(2, description="its hidden layers")
    bound: PositiveFloat = Field(1.5, description="largest log-scale of a coupling")


Flow = Annotated[Glow | Couplings, Field(discriminator="name")]


class Held(Section):
    """How restoring held-out measurements is judged, against truth that no learner has seen."""

    n: PositiveInt = Field(200, description="held-out measurements, the first ones")
    draws: Annotated[int, Field(ge=2)] = Field(16, description="results per measurement")
    preview: NonNegativeInt = Field(64, description="measurements for the figures along the way (`eval/...`); 0: none")
