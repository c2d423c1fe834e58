"""Operators one after the other, operators as matrices, and those of other libraries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gentk import operators
from gentk.errors import RecipeError
from gentk.operators import Gain, Operator
from gentk.operators.masks import Masked

_LARGEST = 3072  # numbers per image, 32 x 32 in colour: the eigenvectors of more take minutes


@dataclass(frozen=True, eq=False)
class Composed:
    """H = parts[-1] ... parts[0]; its singular values come from its matrix."""

    parts: tuple[Operator, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one x."""
        return self.parts[0].shape

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of one y."""
        return self.parts[-1].measured

    def __call__(self, x: Tensor) -> Tensor:
        """The parts in order."""
        for part in self.parts:
            x = part(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Their adjoints in the other order."""
        for part in reversed(self.parts):
            y = part.adjoint(y)
        return y

    def seen(self, y: Tensor) -> Tensor:
        """By the last part: what it hides was not measured."""
        return self.parts[-1].seen(y)

    def spectral(self, x: Tensor, f: Gain) -> Tensor:
        """By the eigenvectors of H^T H. RecipeError for masks of each image's own, and for large images."""
        if len(self.parts) == 1:
            return self.parts[0].spectral(x, f)
        return self._dense.spectral(x, f)

    @cached_property
    def _dense(self) -> Dense:
        if any(isinstance(part, Masked) and len(part.mask) > 1 for part in self.parts):
            raise RecipeError(
                "operator: a composition with a mask for each image has no singular values that are the same for all",
                hint="restore by dps, or by pigdm with method.covariance=true; or give one mask for all",
            )
        if math.prod(self.shape) > _LARGEST:
            raise RecipeError(
                f"operator: the singular values of a composition are found for up to {_LARGEST} numbers per image, "
                f"not {math.prod(self.shape)}",
                hint="restore by dps, or by pigdm with method.covariance=true",
            )
        return Dense(operators.matrix(self), self.shape, self.measured)


@dataclass(frozen=True, eq=False)
class Dense:
    """H as a matrix (measured, shape), both flattened."""

    matrix: Tensor
    shape: tuple[int, ...]
    measured: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """H x."""
        return (x.flatten(1) @ self.matrix.to(x).T).reshape(-1, *self.measured)

    def adjoint(self, y: Tensor) -> Tensor:
        """H^T y."""
        return (y.flatten(1) @ self.matrix.to(y)).reshape(-1, *self.shape)

    def seen(self, y: Tensor) -> Tensor:
        """y."""
        return y

    def spectral(self, x: Tensor, f: Gain) -> Tensor:
        """By the eigenvectors of H^T H."""
        s, v = self._basis
        v = v.to(x)
        return ((x.flatten(1) @ v * f(s).to(x)) @ v.T).reshape(x.shape)

    @cached_property
    def _basis(self) -> tuple[Tensor, Tensor]:
        _, s, v = torch.linalg.svd(self.matrix.double(), full_matrices=True)
        rest = s.new_zeros(v.shape[0] - len(s))
        return torch.cat([s, rest]), v.T


@dataclass(frozen=True, eq=False)
class Foreign:
    """An operator of another library with `A` and `A_adjoint`, such as deepinv's physics, for images of `shape`.

    Its singular values are not asked for: it serves `dps` and `pigdm` in its covariance form.
    """

    physics: Any
    shape: tuple[int, ...]

    @cached_property
    def measured(self) -> tuple[int, ...]:
        """Shape of one y."""
        return tuple(self(torch.zeros(1, *self.shape)).shape[1:])

    def __call__(self, x: Tensor) -> Tensor:
        """H x."""
        out: Tensor = self.physics.A(x)
        return out

    def adjoint(self, y: Tensor) -> Tensor:
        """H^T y."""
        out: Tensor = self.physics.A_adjoint(y)
        return out

    def seen(self, y: Tensor) -> Tensor:
        """y."""
        return y

    def spectral(self, x: Tensor, f: Gain) -> Tensor:
        """RecipeError."""
        raise RecipeError(
            "operator: its singular values are not known", hint="dps, or pigdm with method.covariance=true"
        )
