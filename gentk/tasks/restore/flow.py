"""The flow that `restore flowdiff` has trained: one pass per draw, for the operator that it learned."""

from __future__ import annotations

from typing import Literal

from gentk.recipe.schema import Section


class Config(Section):
    """It has no settings: operator and sigma must be those of its training."""

    name: Literal["flow"]
