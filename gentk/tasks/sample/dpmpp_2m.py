"""DPM-Solver++(2M), second-order multistep (arXiv:2211.01095)."""

from __future__ import annotations

from typing import Literal

from gentk.recipe.schema import Section

KIND = "denoiser"


class Config(Section):
    """Settings of the solver."""

    name: Literal["dpmpp-2m"]
