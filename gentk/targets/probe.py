"""What is wrong with a log-density, as far as values of it tell: said before a sampler is trained on it.

A function that passes may still be no density: the check looks along a few lines, as far as they reach.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from gentk.errors import RecipeError, RunFailed
from gentk.targets.density import Density

_RADII = (20.0, 200.0, 2000.0)  # in units of the base: far outside, and ten times as far twice
_LINES = 64  # random directions beside those of the axes
_AXES = 64  # axes looked at, at most


class _Line(NamedTuple):
    name: str
    direction: Tensor


def check(density: Density, base: Tensor, *, scale: float, gen: Generator) -> None:
    """Looks at `density` at `base` (N, D), where the sampler starts, and along lines from the base's mean.

    Raises RecipeError where log_prob does not return (N,), mixes its rows, is constant, or is an energy (grows in
    almost every direction); where it does not fall along some line: no density of finite mass; RunFailed where value or
    gradient at the base are not finite.
    """
    x = base.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = density.log_prob(x)
        if not isinstance(value, Tensor) or value.shape != (len(x),):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise RecipeError(f"target `{density.name}`: log-density of {tuple(x.shape)} points is {shape}, not (N,)")
        if not value.requires_grad:
            raise RecipeError(
                f"target `{density.name}`: no gradient reaches the points", hint="write it in torch, without .detach()"
            )
        (grad,) = torch.autograd.grad(value.sum(), x)
    _finite(density, value.detach(), grad)
    _rows(density, x.detach(), grad)
    _falls(density, x.detach().mean(0), scale, gen)


def _finite(density: Density, value: Tensor, grad: Tensor) -> None:
    bad = int((~(value.isfinite() & grad.isfinite().all(1))).sum())
    if not bad:
        return
    hint = "its support must be the whole space"
    if density.kind == "function" and density.constrain is None:
        hint = "constrained parameters need a map: --set target.map='[real, positive, unit]', one word for each"
    raise RunFailed(
        f"target `{density.name}`: log-density or gradient is not finite at {bad} of {len(value)} points where the "
        "sampler starts",
        hint=hint,
    )


def _rows(density: Density, x: Tensor, grad: Tensor) -> None:
    """A row's gradient may not depend on the other rows."""
    half = x[: len(x) // 2].clone().requires_grad_()
    with torch.enable_grad():
        (own,) = torch.autograd.grad(density.log_prob(half).sum(), half)
    if not torch.allclose(own, grad[: len(half)], rtol=1e-2, atol=1e-3 * (1 + float(grad.abs().max()))):
        raise RecipeError(
            f"target `{density.name}`: the log-density of a point depends on the others in the batch",
            hint="sum over the coordinates of a row, not over rows; no batch norm",
        )


def _falls(density: Density, middle: Tensor, scale: float, gen: Generator) -> None:
    d = len(middle)
    axes = [_Line(f"{sign}x{k + 1}", s * torch.eye(d)[k]) for k in range(min(d, _AXES)) for sign, s in _SIGNS]
    some = torch.randn(_LINES, d, generator=gen, device=gen.device).cpu()
    lines = axes + [_Line("", one) for one in some / some.norm(dim=1, keepdim=True)]
    directions = torch.stack([line.direction for line in lines]).to(middle)
    reach = scale * math.sqrt(d)
    with torch.no_grad():
        at = [density.log_prob(middle + reach * r * directions).double() for r in _RADII]
    # A density that can be integrated along a line falls by more than 1 / r does, in the end.
    least = math.log(_RADII[1] / _RADII[0])
    first, second = at[1] - at[0], at[2] - at[1]
    usable = first.isfinite() & second.isfinite()
    grows, flat = usable & (first > least) & (second > least), usable & (first > -least) & (second > -least)
    grows |= (at[2] == math.inf) | (at[1] == math.inf)
    if int(grows.sum()) > 0.75 * len(lines):
        raise RecipeError(
            f"target `{density.name}`: grows without end in {int(grows.sum())} of {len(lines)} directions: it looks "
            "like an energy U with its sign swapped",
            hint="a log-density is -U",
        )
    bad = grows | flat
    if not bool(bad.any()):
        return
    named = [line.name for line, b in zip(lines, bad.tolist(), strict=True) if b and line.name]
    where = f"along {', '.join(named[:4])}" if named else f"in {int(bad.sum())} of {len(lines)} directions"
    raise RecipeError(
        f"target `{density.name}`: improper: the log-density does not fall {where} (looked at {_RADII[0]:g} to "
        f"{_RADII[-1]:g} base deviations), so that its mass is infinite",
        hint="give a proper prior, or --set target.tail=10 to bound it, which changes the target",
    )


_SIGNS = (("+", 1.0), ("-", -1.0))
