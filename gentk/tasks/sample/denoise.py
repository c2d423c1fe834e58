"""Images of a data set with noise added, denoised by an energy (a run of train-ebm): one gradient, or the mode."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from gentk.recipe.schema import Data, Section

KIND = "energy"


class Config(Section):
    """What is denoised, and how."""

    name: Literal["denoise"]
    data: Data = Field(description="clean images")
    split: Literal["train", "test"] = Field("test", description="their split")
    sigma: PositiveFloat = Field(0.6, description="standard deviation of the noise, images in [-1, 1]")
    by: Literal["mean", "mode"] = Field(
        "mean", description="mean: y - sigma^2 grad E(y, sigma), for time-dependent energies; mode: the likeliest image"
    )
    steps: PositiveInt = Field(100, description="gradient steps to the mode")
