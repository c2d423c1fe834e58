"""SDE-DPM-Solver++(2M), second-order multistep with noise (arXiv:2211.01095)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat

from gentk.recipe.schema import Section

KIND = "denoiser"


class Config(Section):
    """Settings of the solver."""

    name: Literal["dpmpp-2m-sde"]
    eta: NonNegativeFloat = Field(1.0, description="noise: 0 none, 1 the usual reverse SDE; tau^2 of SA-Solver")
    form: Literal["midpoint", "heun"] = Field("midpoint", description="which of the two second-order terms")
