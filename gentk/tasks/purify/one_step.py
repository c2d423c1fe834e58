"""Noise the image once and ask a distilled one-step generator, where it serves as a denoiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat

from gentk.recipe.schema import Section

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    from gentk.defences import Purifier
    from gentk.defences.prior import Prior


KIND = "generator"


class Config(Section):
    """Settings of the defence."""

    name: Literal["one-step"]
    t_star: PositiveFloat = Field(2.5, description="noise level that the image is brought to, of z in [-1, 1]")


def levels(config: Config) -> dict[str, float]:
    """The noise level that the model is asked at, by key."""
    return {"method.t_star": config.t_star}


def build(config: Any, prior: Prior) -> Purifier:
    """The purifier."""
    from gentk.defences.one_shot import OneShot

    return OneShot(prior, config.t_star)
