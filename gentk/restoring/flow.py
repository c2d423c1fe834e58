"""A trained conditional flow (FlowDiff): one pass per draw of the posterior, for the operator that it learned.

What it is told of y, and the guess that it starts from, is here for the learner and the restorer alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gentk import operators
from gentk.operators import Operator
from gentk.operators.identity import Identity
from gentk.operators.masks import Masked
from gentk.restoring import Denoise, Levels, Noise

POSTERIOR = "approximate"

Flow = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(z, context, base, width) -> x, log|det dx/dz| (`gentk.nets.conditional_flow`)."""


@dataclass(frozen=True, eq=False)
class Amortised:
    """G(z; y): a flow around the Gaussian posterior under the prior N(mean, r^2), `mean` of one image's shape.

    `r` is one number, or each pixel's own where the operator leaves pixels apart.
    """

    flow: Flow
    mean: Tensor
    r: float | Tensor

    def draw(self, op: Operator, y: Tensor, sigma: float, z: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, *shape) and log|det dx/dz| (B,)."""
        base, width = guess(op, y, sigma, self.mean, self.r)
        return self.flow(z, context(op, y), base, width)

    def restore(
        self, denoise: Denoise, op: Operator, y: Tensor, sigma: float, x: Tensor, levels: Levels, noise: Noise
    ) -> Tensor:
        """One draw per row, from z = x / levels[0]; no denoiser is called."""
        return self.draw(op, y, sigma, x / levels[0])[0]


def guess(op: Operator, y: Tensor, sigma: float, mean: Tensor, r: float | Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the posterior under N(mean, r^2): (B, *shape) twice; `r` as in `Amortised`."""
    middle = mean.expand(len(y), *op.shape)
    if isinstance(op, Identity | Masked):
        variance = torch.as_tensor(r, device=y.device).square().to(y).expand_as(middle)
        left_over = variance * sigma**2 / (variance + sigma**2)
        base = middle + variance / (variance + sigma**2) * op.seen(y - op(middle))
        return base, torch.where(op.seen(torch.ones_like(y)) > 0, left_over, variance).sqrt()
    assert isinstance(r, float)
    base = middle + operators.regularised(op, op.seen(y - op(middle)), r, sigma)

    def left(s: Tensor) -> Tensor:
        return 1 / (1 / r**2 + s**2 / sigma**2)

    probe = torch.randint(0, 2, op.shape, generator=torch.Generator().manual_seed(0)).to(base) * 2 - 1
    mean_left = (op.spectral(probe[None], left)[0] * probe).mean()  # of the diagonal, by one random vector of signs
    return base, mean_left.clamp_min(1e-8).sqrt().expand_as(base)


def context(op: Operator, y: Tensor) -> Tensor:
    """What the flow is told: y in the image's shape and, for images, where something is measured."""
    view = operators.shown(op, y)
    if view.dim() == 2:
        return view
    seen = (
        op.seen(torch.ones_like(y)).amax(1, keepdim=True) if op.measured == op.shape else torch.ones_like(view[:, :1])
    )
    return torch.cat([view, seen.expand(len(view), 1, *view.shape[2:])], 1)


def context_size(shape: tuple[int, ...]) -> int:
    """Channels (or numbers) of the context."""
    return shape[0] + (len(shape) == 3)
