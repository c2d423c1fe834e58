"""Measurement operators: y = H x + sigma eps, H linear with its adjoint and its singular values.

    symbol  meaning
    x       images (B, C, S, S) in [-1, 1], or points (B, D)
    y       measurements (B, *measured)
    H       = U diag(s) V^T; never formed, but for the small and composed

Everything that a restorer wants of H but its adjoint is a function of the singular values in the basis V, such as the
pseudo-inverse H^+ = V s^-1 U^T = (V s^-2 V^T) H^T: so an operator has `spectral(x, f) = V f(s) V^T x`, and what is
made of it is below. Convolutions are periodic: V is then the Fourier basis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.recipe import operators as sections

Gain = Callable[[Tensor], Tensor]
"""A function of singular values, elementwise; float64 in and out."""

ROUNDING = 1e-6
"""Singular values below this part of the largest count as 0."""


class Operator(Protocol):
    """H for images of `shape`; a mask of each image's own makes it one for a batch of so many images only."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one x."""
        ...

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of one y."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """H x: (B, *shape) -> (B, *measured)."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """H^T y: (B, *measured) -> (B, *shape)."""
        ...

    def seen(self, y: Tensor) -> Tensor:
        """y with 0 where nothing is measured (the hidden pixels of a mask)."""
        ...

    def spectral(self, x: Tensor, f: Gain) -> Tensor:
        """V f(s) V^T x: (B, *shape) -> (B, *shape). Raises RecipeError where the singular values are out of reach."""
        ...


def build(
    section: sections.Operator, shape: tuple[int, ...], gens: Sequence[torch.Generator] = (), *, where: str = "cpu"
) -> Operator:
    """The operator of a section for images of `shape` (C, S, S) or points (D,), on the device `where`.

    `gens`: one generator per image of the batch, for operators that are drawn for each (`drawn`). Raises RecipeError
    where the operator does not fit the shape, MissingAsset or GentkError for a mask file.
    """
    from gentk.operators import averages, blur, composed, identity, masks

    if isinstance(section, sections.Noise):
        return identity.Identity(shape)
    if isinstance(section, sections.Compose):
        parts: list[Operator] = []
        for part in section.parts:
            parts.append(build(part, parts[-1].measured if parts else shape, gens, where=where))
        return composed.Composed(tuple(parts))
    if len(shape) != 3:
        raise RecipeError(
            f"operator.name: `{section.name}` is for images, the samples have shape {shape}", hint="use `noise`"
        )
    match section:
        case sections.Inpaint():
            if section.mask is not None:
                return masks.Masked(shape, masks.read(section.mask, shape, section.corner).to(where))
            return masks.Masked(shape, masks.random(section.keep, shape, gens).to(where))
        case sections.Box():
            return masks.Masked(shape, masks.box(section, shape, gens).to(where))
        case sections.Blur():
            return blur.Convolved(shape, blur.gaussian(section.size, section.std, shape).to(where))
        case sections.MotionBlur():
            return blur.Convolved(shape, blur.motion(section.length, section.angle, shape).to(where))
        case sections.Downsample():
            return averages.Downsampled(shape, averages.divides(section.factor, shape))
        case sections.Grey():
            return averages.Greyed(averages.coloured(shape))
    raise RecipeError(f"operator.name: unknown operator `{section.name}`")


def drawn(section: sections.Operator) -> bool:
    """Whether the operator is another for every image, so that measurements alone do not say what it was."""
    if isinstance(section, sections.Compose):
        return any(drawn(part) for part in section.parts)
    random_mask = isinstance(section, sections.Inpaint) and section.mask is None
    return random_mask or (isinstance(section, sections.Box) and section.place == "random")


def measure(op: Operator, x: Tensor, sigma: float, eps: Tensor) -> Tensor:
    """y = H x + sigma eps where something is measured, eps (B, *measured) standard normal."""
    return op.seen(op(x) + sigma * eps)


def pseudo_inverse(op: Operator, y: Tensor) -> Tensor:
    """H^+ y, the least x of the least |H x - y|."""
    return op.spectral(op.adjoint(y), lambda s: _where(s, s**-2))


def regularised(op: Operator, y: Tensor, r: float, sigma: float) -> Tensor:
    """r^2 H^T (r^2 H H^T + sigma^2)^-1 y: what y says of x where x is N(0, r^2) and the noise N(0, sigma^2).

    x + that of (y - H x) is the minimiser of |y - H x'|^2 / sigma^2 + |x' - x|^2 / r^2. sigma = 0 is H^+ y.
    """
    if sigma == 0:
        return pseudo_inverse(op, y)
    return op.spectral(op.adjoint(y), lambda s: r**2 / (r**2 * s**2 + sigma**2))


def project(op: Operator, x: Tensor) -> Tensor:
    """H^+ H x: the part of x that is measured."""
    return op.spectral(x, lambda s: _where(s, torch.ones_like(s)))


def matrix(op: Operator) -> Tensor:
    """H (measured, shape), both flattened, float64: for small ones. An operator of one image or of all alike."""
    n = math.prod(op.shape)
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *op.shape)
    return torch.stack([op(row[None])[0].flatten() for row in basis], 1)


def shown(op: Operator, y: Tensor) -> Tensor:
    """Measurements as images of the original's shape, for the eye: themselves, or H^+ y where the shapes differ."""
    return y if op.measured == op.shape else pseudo_inverse(op, y)


def _where(s: Tensor, value: Tensor) -> Tensor:
    return torch.where(s > ROUNDING, value, torch.zeros_like(s))
