"""One call of a distilled generator."""

from __future__ import annotations

from typing import Literal

from gentk.recipe.schema import Section

KIND = "generator"


class Config(Section):
    """No settings: the noise level is the one that the generator was made for, from its header."""

    name: Literal["one-step"]
