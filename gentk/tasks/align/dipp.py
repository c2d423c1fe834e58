"""Diff-Instruct++: reward and integrated KL divergence (arXiv:2410.18881).

    min over theta of  E[ -alpha_rew r(g(z, c), c) ] + int w(t) KL(p_theta,t || p_ref,t) dt

The reference's score is guided: s_ref(c) + alpha_cfg (s_ref(c) - s_ref(null)), which is the gradient of the same
objective with an implicit reward of scale alpha_cfg. With alpha_rew = 0 this is guided Diff-Instruct.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from gentk.tasks.align import AlignSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch

    from gentk.engine.method import Trainable


class Config(AlignSettings):
    """Settings of Diff-Instruct++; symbols as in the paper."""

    name: Literal["dipp"]


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.losses.divergence import diff_instruct
    from gentk.tasks.align._aligning import Aligning

    # the bracket of scores is a factor, whatever x_t depends on: no graph through the denoisers
    return Aligning(recipe, where, diff_instruct, through=False)
