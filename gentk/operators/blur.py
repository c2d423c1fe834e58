"""Blur: convolution of every channel with one kernel, periodic at the edges, done in the Fourier basis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.operators import Gain

_FINE = 64  # points per pixel that a line is drawn with


@dataclass(frozen=True, eq=False)
class Convolved:
    """H x = kernel * x; `kernel` (S, S) float64, its middle at (0, 0), wrapped around."""

    shape: tuple[int, ...]
    kernel: Tensor

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of one y."""
        return self.shape

    @property
    def transfer(self) -> Tensor:
        """The factor of every frequency, complex (S, S / 2 + 1)."""
        out: Tensor = torch.fft.rfft2(self.kernel)
        return out

    def __call__(self, x: Tensor) -> Tensor:
        """kernel * x."""
        return _filtered(x, self.transfer)

    def adjoint(self, y: Tensor) -> Tensor:
        """The correlation with the kernel, not the convolution."""
        return _filtered(y, self.transfer.conj())

    def seen(self, y: Tensor) -> Tensor:
        """y."""
        return y

    def spectral(self, x: Tensor, f: Gain) -> Tensor:
        """f of the moduli of the transfer function."""
        return _filtered(x, f(self.transfer.abs()).to(torch.complex128))


def gaussian(size: int, std: float, shape: tuple[int, ...]) -> Tensor:
    """A Gaussian of size x size pixels, of sum 1, for `Convolved`. RecipeError for an even or too large one."""
    if size % 2 == 0:
        raise RecipeError(f"operator.size: {size} is even: the kernel would have no middle", hint="give an odd size")
    reach = torch.arange(size, dtype=torch.float64) - size // 2
    row = torch.exp(-reach.square() / (2 * std**2))
    return _placed(torch.outer(row, row), shape)


def motion(length: float, angle: float, shape: tuple[int, ...]) -> Tensor:
    """A line through the middle, shared between the four pixels around each of its points, of sum 1."""
    half = math.ceil(length / 2)
    kernel = torch.zeros(2 * half + 3, 2 * half + 3, dtype=torch.float64)
    middle = half + 1
    along = torch.linspace(-0.5, 0.5, max(2, round(_FINE * length)), dtype=torch.float64) * max(length - 1, 0)
    turn = math.radians(angle)
    for row, column in zip((middle - along * math.sin(turn)).tolist(), (middle + along * math.cos(turn)).tolist()):  # noqa: B905
        i, j = math.floor(row), math.floor(column)
        u, v = row - i, column - j
        for di, dj, share in ((0, 0, (1 - u) * (1 - v)), (0, 1, (1 - u) * v), (1, 0, u * (1 - v)), (1, 1, u * v)):
            kernel[i + di, j + dj] += share
    kernel[kernel < 1e-9] = 0.0
    filled = kernel.nonzero()
    reach = int((filled - middle).abs().max())
    return _placed(kernel[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1], shape)


def _placed(kernel: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An odd kernel normalised, in an image's frame, its middle at (0, 0)."""
    side, (_, height, width) = len(kernel), shape
    if side > min(height, width):
        raise RecipeError(
            f"operator: a kernel of {side} x {side} pixels does not fit into images of {height} x {width}",
            hint="a smaller operator.size or operator.length",
        )
    frame = torch.zeros(height, width, dtype=torch.float64)
    frame[:side, :side] = kernel / kernel.sum()
    return frame.roll((-(side // 2), -(side // 2)), (0, 1))


def _filtered(x: Tensor, transfer: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(x if x.dtype == torch.float64 else x.float())
    out: Tensor = torch.fft.irfft2(spectrum * transfer.to(spectrum), s=x.shape[-2:]).to(x.dtype)
    return out
