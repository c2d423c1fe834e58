"""The prior's own reverse process, begun at the measurement: for H = 1, y = x0 + sigma eps is a sample at level sigma.

Where nothing but noise was done to an image, a draw of x0 given x_sigma = y is what the model is for: no guidance, no
backward pass, right for every law and not for Gaussians only, but for the size of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.operators import Operator
from gentk.operators.identity import Identity
from gentk.restoring import Denoise, Levels, Noise, ancestral

POSTERIOR = "exact"


def levels_of(op: Operator, sigma: float, levels: Sequence[float]) -> tuple[float, ...]:
    """The part of a grid that is walked: sigma, then the levels below. RecipeError where y is no sample of a level."""
    if not isinstance(op, Identity):
        raise RecipeError(
            "operator: `reverse` undoes noise alone: what else was done makes y no sample of the model's process",
            hint="gentk restore pigdm",
        )
    below = tuple(level for level in levels if level < sigma)
    if len(below) < 2:
        raise RecipeError(
            f"grid: not one level between sigma = {sigma:g} and 0", hint="more --steps, or a smaller grid.sigma_min"
        )
    return (sigma, *below)


@torch.no_grad()  # plain arithmetic on the denoiser's answers
def restore(denoise: Denoise, op: Operator, y: Tensor, sigma: float, x: Tensor, levels: Levels, noise: Noise) -> Tensor:
    """Ancestral steps from y, which is x at levels[0] = sigma; the start `x` is not used."""
    state = y
    for s, u in pairwise(levels):
        state = ancestral(state, denoise(state, s), s, u, noise)
    return state
