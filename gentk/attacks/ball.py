"""The set that an attack may move an image in: a ball around it in a norm, cut with [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gentk.attacks.victim import Tape
from gentk.errors import RecipeError, RunFailed

Norm = Literal["linf", "l2"]

_SLACK = 1e-6  # what float32 adds and takes away in x + delta - x, relative to values up to 1


@dataclass(frozen=True)
class Ball:
    """Images within `eps` of a clean one and within [0, 1]. Raises RecipeError for an eps that is no such distance."""

    norm: Norm
    eps: float

    def __post_init__(self) -> None:
        if not 0 <= self.eps < math.inf or (self.norm == "linf" and self.eps > 1):
            raise RecipeError(
                f"eps: {self.eps:g} is no distance of images in [0, 1]", hint="in units of [0, 1]: 8/255, not 8"
            )

    def project(self, moved: Tensor, x: Tensor) -> Tensor:
        """`moved` (B, C, H, W) brought into the ball around x, then into [0, 1], which cannot lead out of the ball."""
        if self.norm == "linf":
            return torch.clamp(torch.minimum(torch.maximum(moved, x - self.eps), x + self.eps), 0, 1)
        delta = moved - x
        length = _norms(delta)
        return (x + delta * (self.eps / length.clamp_min(1e-12)).clamp_max(1)).clamp(0, 1)

    def start(self, x: Tensor, tape: Tape) -> Tensor:
        """A point drawn evenly from the ball around x, then clipped to [0, 1]; row i by row i of `tape`."""
        shape = x.shape[1:]
        if self.norm == "linf":
            return self.project(x + self.eps * (2 * tape.uniform("start", shape, like=x) - 1), x)
        direction = tape.normal("start", shape, like=x)
        radius = tape.uniform("radius", (1, 1, 1), like=x) ** (1 / math.prod(shape))
        return self.project(x + self.eps * radius * direction / _norms(direction), x)

    def ascend(self, moved: Tensor, gradient: Tensor, step: float) -> Tensor:
        """`moved` after the steepest step of size `step` in the ball's norm; a gradient of zero moves nothing."""
        if self.norm == "linf":
            return moved + step * gradient.sign()
        return moved + step * gradient / _norms(gradient).clamp_min(torch.finfo(gradient.dtype).tiny)

    def distance(self, moved: Tensor, x: Tensor) -> Tensor:
        """How far each image went: (B,) float64."""
        delta = (moved.double() - x.double()).flatten(1)
        far: Tensor = torch.linalg.vector_norm(delta, torch.inf if self.norm == "linf" else 2, dim=1)
        return far

    def check(self, moved: Tensor, x: Tensor, ids: Tensor, what: str) -> None:
        """Raises RunFailed naming the first image that is outside of the ball or of [0, 1], or not finite."""
        far = self.distance(moved, x)
        outside = ~(far <= self.eps + _SLACK * max(1.0, self.eps)) | ~((moved >= 0) & (moved <= 1)).flatten(1).all(1)
        if bool(outside.any()):
            i = int(outside.nonzero()[0])
            raise RunFailed(
                f"{what}: image {int(ids[i])} is outside of the threat: {self.norm} distance {float(far[i]):.6g}, eps "
                f"{self.eps:.6g}, values {float(moved[i].min()):.4g} to {float(moved[i].max()):.4g}",
                hint="its file was rounded to bytes, or made for another eps or other images",
            )


def _norms(x: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return lengths
