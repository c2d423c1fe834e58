"""Means: of square blocks of pixels, and of the colours of a pixel. All their singular values but 0 are equal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gentk.errors import RecipeError
from gentk.operators import Gain

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601: what Pillow and most others call grey


@dataclass(frozen=True)
class Downsampled:
    """The mean of every block of factor x factor pixels; H H^T = 1 / factor^2."""

    shape: tuple[int, ...]
    factor: int

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of one y."""
        channels, height, width = self.shape
        return channels, height // self.factor, width // self.factor

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / factor, W / factor)."""
        return F.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        """Every value spread over its block."""
        return _repeated(y, self.factor) / self.factor**2

    def seen(self, y: Tensor) -> Tensor:
        """y."""
        return y

    def spectral(self, x: Tensor, f: Gain) -> Tensor:
        """f(1 / factor) on the blocks' means, f(0) on what is left of x without them."""
        return _split(x, _repeated(self(x), self.factor), 1 / self.factor, f)


@dataclass(frozen=True)
class Greyed:
    """The luminance of images of `shape` (3, H, W); H H^T = sum of its squared weights."""

    shape: tuple[int, ...]

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of one y."""
        return (1, *self.shape[1:])

    def __call__(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1, H, W)."""
        return (x * _weights(x)).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, 3, H, W)."""
        return y * _weights(y)

    def seen(self, y: Tensor) -> Tensor:
        """y."""
        return y

    def spectral(self, x: Tensor, f: Gain) -> Tensor:
        """f of the weights' norm along the weights, f(0) across them."""
        square = sum(w * w for w in _LUMINANCE)
        return _split(x, self.adjoint(self(x)) / square, square**0.5, f)


def divides(factor: int, shape: tuple[int, ...]) -> int:
    """The factor; RecipeError where blocks of it do not fill the images."""
    if shape[1] % factor or shape[2] % factor:
        raise RecipeError(
            f"operator.factor: blocks of {factor} pixels do not fill images of {shape[1]} x {shape[2]}",
            hint="use a factor that divides their sides",
        )
    return factor


def coloured(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape; RecipeError where it has no colours to lose."""
    if shape[0] != 3:
        raise RecipeError(f"operator.name: `grey` takes colour images, these have {shape[0]} channel(s)")
    return shape


def _repeated(y: Tensor, factor: int) -> Tensor:
    return y.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def _weights(x: Tensor) -> Tensor:
    return x.new_tensor(_LUMINANCE)[:, None, None]


def _split(x: Tensor, part: Tensor, s: float, f: Gain) -> Tensor:
    """f(s) on `part` and f(0) on the rest of x."""
    along, across = (float(v) for v in f(torch.tensor([s, 0.0], dtype=torch.float64)))
    return along * part + across * (x - part)
