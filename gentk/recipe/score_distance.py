"""The distance of scores that SIM's divergence averages, as the methods that take it set it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from gentk.recipe.section import Section


class ScoreDistance(Section):
    """Fields for a method's `Config` to extend; symbols as in SIM (arXiv:2410.16794)."""

    distance: Literal["pseudo-huber", "l2", "l2-norm", "smooth-l1"] = Field(
        "pseudo-huber", description="d(y) of the score difference: sqrt(|y|^2 + c^2) - c, |y|^2, |y|, or per coordinate"
    )
    c: Literal["auto"] | NonNegativeFloat = Field(
        "auto", description="pseudo-Huber constant in denoiser units; auto: 0.00054 sqrt(d), iCT's rule"
    )
    path: Literal["frozen", "full"] = Field(
        "frozen", description="sampling law of the divergence: frozen as in the paper, or differentiated as well"
    )

    @model_validator(mode="after")
    def _smooth(self) -> Self:
        if self.distance == "smooth-l1" and self.c == 0:
            raise ValueError("distance `smooth-l1` with c = 0 has a wrong gradient: set c > 0, or `auto`")
        return self
