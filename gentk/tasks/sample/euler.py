"""Euler's method on the probability-flow ODE in the process's own time."""

from __future__ import annotations

from typing import Literal

from gentk.recipe.schema import Section

KIND = "denoiser"


class Config(Section):
    """Settings of the solver."""

    name: Literal["euler"]
