"""DPM-Solver++(3M), third-order multistep, as published or corrected (arXiv:2211.01095)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gentk.recipe.schema import Section

KIND = "denoiser"


class Config(Section):
    """Settings of the solver."""

    name: Literal["dpmpp-3m"]
    form: Literal["corrected", "published"] = Field(
        "corrected", description="published: the public code's third term, half of what third order needs"
    )
    lower_final: bool = Field(True, description="fall to lower order on the last steps of fewer than 15")
