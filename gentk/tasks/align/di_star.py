"""Diff-Instruct*: reward and score-based divergence (arXiv:2410.20898).

DI++ with SIM's divergence in place of the KL: d(s_psi - s_ref), d the pseudo-Huber distance. The guided reference
stands inside the distance (`cfg_placement: in`, as released), or guidance is the DI++ term of its implicit reward
beside a divergence from the plain reference (`out`; the row is the paper's, this reading of it ours).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from gentk.tasks.align import AlignSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch
    from torch import Tensor

    from gentk.engine.method import Trainable


class Config(AlignSettings):
    """Settings of Diff-Instruct*; symbols as in the paper."""

    name: Literal["di-star"]
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


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.losses.divergence import sim
    from gentk.tasks.align._aligning import Aligning

    config: Config = recipe.method

    def objective(x0: Tensor, d_teacher: Tensor, d_fake: Tensor) -> Tensor:
        c = 0.00054 * x0[0].numel() ** 0.5 if config.c == "auto" else config.c
        return sim(x0, d_teacher, d_fake, distance=config.distance, c=c, path=config.path)

    return Aligning(recipe, where, objective, through=True)
