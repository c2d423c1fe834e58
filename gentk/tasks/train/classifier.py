"""Classifier, by cross-entropy on images or on attacked images; its feature layer compares sets of small images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from gentk.recipe.attacking import AdversarialTraining
from gentk.recipe.schema import Section

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable


class Config(Section):
    """Settings of the classifier."""

    name: Literal["classifier"]
    shift: NonNegativeInt = Field(0, description="largest random translation in pixels, per axis")
    noise: NonNegativeFloat = Field(
        0.0, description="standard deviation of Gaussian noise added in training, images in [-1, 1]"
    )
    label_smoothing: NonNegativeFloat = Field(0.0, description="mass moved from the true class to all classes")
    adversarial: AdversarialTraining | None = Field(
        None, description="train on attacked images, and measure under the attack; null: on images as they are"
    )


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.tasks.train._classifying import Classifying

    return Classifying(recipe, where)
