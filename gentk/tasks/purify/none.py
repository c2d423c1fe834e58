"""No defence: the classifier alone, which every other row is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gentk.recipe.schema import Section

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    from gentk.defences import Purifier

KIND = None


class Config(Section):
    """It has no settings."""

    name: Literal["none"]


def levels(config: Config) -> dict[str, float]:
    """No model is asked."""
    return {}


def build(config: Any, prior: Any) -> Purifier:
    """The purifier that does nothing."""
    from gentk.defences.none import Nothing

    return Nothing()
