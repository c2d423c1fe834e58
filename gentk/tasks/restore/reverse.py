"""The model's own reverse process, begun at the noisy image: draws of the posterior, for noise alone."""

from __future__ import annotations

from typing import Any, Literal

from gentk.recipe.schema import Section


class Config(Section):
    """It has no settings: the steps are those of the grid below sigma."""

    name: Literal["reverse"]


def needs_noise(config: Any) -> bool:
    """sigma = 0 leaves nothing to do."""
    return True
