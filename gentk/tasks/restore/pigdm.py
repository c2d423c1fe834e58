"""Pseudo-inverse guidance (PiGDM), with one variance or the model's own covariance: draws of the posterior."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from gentk.recipe.schema import Section


class Config(Section):
    """Settings of the restorer."""

    name: Literal["pigdm"]
    covariance: bool = Field(
        False,
        description="the covariance that the model itself implies, exact for Gaussian data; sigma must be above 0",
    )
    solves: PositiveInt = Field(5, description="its steps of conjugate gradients, one backward pass each")
    sigma_data: PositiveFloat = Field(0.5, description="deviation of the data, for the one variance r^2")
    weight: Literal["adaptive", "score"] = Field(
        "adaptive", description="of the guidance with one variance: the paper's algorithm, or the Gaussian score itself"
    )


def needs_noise(config: Any) -> bool:
    """Whether sigma may not be 0."""
    return bool(config.covariance)
