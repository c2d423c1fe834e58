"""Heun's second-order method on the probability-flow ODE (arXiv:2206.00364): 2 evaluations a step."""

from __future__ import annotations

from typing import Literal

from gentk.recipe.schema import Section

KIND = "denoiser"


class Config(Section):
    """Settings of the solver."""

    name: Literal["heun"]
