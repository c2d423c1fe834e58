"""The two-dimensional targets of the literature on samplers on their own scales, normalised, with exact samples.

Definitions differ from paper to paper: these are public ones, and the formula stands beside each. `find` knows the
targets of `plane` too.

    rosenbrock          ((1 - x1)^2 + 10 (x2 - x1^2)^2) / 2
    donut, neal-funnel, squiggle, mcmc-banana: of chi-feng/mcmc-demo
    u1 to u4            Rezende and Mohamed 2015 (arXiv:1505.05770), table 1, in the box [-5, 5]^2: u2, u3 and u4 do not
                        depend on x1 far away and are no densities without one; beyond it, Gaussian walls of deviation
                        0.1
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Generator, Tensor

from gentk.errors import RecipeError, did_you_mean
from gentk.targets import plane
from gentk.targets.plane import Target, mixture

_CELLS = 1400  # a side, of the grids that u1 to u4 are drawn from
_EDGE, _WALL = 5.0, 0.1


def find(name: str) -> Target:
    """The target of that name, here or in `plane`. Raises RecipeError for an unknown one."""
    if name in plane.TARGETS:
        return plane.TARGETS[name]
    if name not in _MADE_BY:
        known = (*plane.names(), *_MADE_BY)
        raise RecipeError(f"unknown target `{name}`{did_you_mean(name, known)}", hint=f"targets: {', '.join(known)}")
    return _made(name)


def names() -> tuple[str, ...]:
    """The names of the targets here."""
    return tuple(_MADE_BY)


@cache
def _made(name: str) -> Target:
    return _MADE_BY[name]()


def _noise(n: int, gen: Generator) -> Tensor:
    return torch.randn(n, 2, generator=gen, device=gen.device)


def _unit(x: Tensor) -> Tensor:
    return -0.5 * x.square() - 0.5 * math.log(2 * math.pi)


def _normal() -> Target:
    """N(0, I)."""
    return Target("normal", _noise, lambda x: _unit(x).sum(-1))


def _pair(name: str, first: float, second: float) -> Callable[[], Target]:
    """Two Gaussians of unit deviation and equal weight at +-(first, second)."""
    centres = torch.tensor([[-first, -second], [first, second]], dtype=torch.float64)
    return lambda: mixture(name, centres, 1.0)


def _rosenbrock() -> Target:
    """x1 ~ N(1, 1), x2 | x1 ~ N(x1^2, 1/10)."""
    k = 10.0

    def sample(n: int, gen: Generator) -> Tensor:
        z = _noise(n, gen)
        first = 1 + z[:, 0]
        return torch.stack((first, first.square() + z[:, 1] / math.sqrt(k)), -1)

    def log_prob(x: Tensor) -> Tensor:
        a, b = x.unbind(-1)
        return _unit(1 - a) + _unit(math.sqrt(k) * (b - a.square())) + 0.5 * math.log(k)

    return Target("rosenbrock", sample, log_prob)


def _donut() -> Target:
    """exp(-(|x| - 2.6)^2 / 0.033): uniform angle, radius of density r exp(-(r - 2.6)^2 / 0.033) by rejection."""
    radius, width = 2.6, 0.033
    root = radius / math.sqrt(width)
    # the integral of r exp(-(r - c)^2 / w) from 0, times 2 pi
    total = width / 2 * math.exp(-(root**2)) + radius * math.sqrt(math.pi * width) / 2 * (1 + math.erf(root))
    log_z = math.log(2 * math.pi * total)

    def sample(n: int, gen: Generator) -> Tensor:
        kept, most = [torch.empty(0, device=gen.device)], 2 * radius
        while sum(map(len, kept)) < n:
            # of N(c, w / 2) keep r with probability r / 2c: r beyond 2c is 20 deviations off
            r = radius + math.sqrt(width / 2) * torch.randn(2 * n + 8, generator=gen, device=gen.device)
            kept.append(r[torch.rand(len(r), generator=gen, device=gen.device) * most < r])
        r = torch.cat(kept)[:n]
        angle = 2 * math.pi * torch.rand(n, generator=gen, device=gen.device)
        return torch.stack((r * angle.cos(), r * angle.sin()), -1)

    def log_prob(x: Tensor) -> Tensor:
        off: Tensor = torch.linalg.vector_norm(x, dim=-1) - radius
        return -off.square() / width - log_z

    return Target("donut", sample, log_prob)


def _neal_funnel() -> Target:
    """v = x2 - 2 ~ N(0, 3^2), x1 | v ~ N(0, e^v): Neal's funnel with its own neck, `funnel` made wide."""

    def sample(n: int, gen: Generator) -> Tensor:
        z = _noise(n, gen)
        v = 3 * z[:, 0]
        return torch.stack(((v / 2).exp() * z[:, 1], v + 2), -1)

    def log_prob(x: Tensor) -> Tensor:
        first, v = x[..., 0], x[..., 1] - 2
        return _unit(v / 3) - math.log(3) + _unit(first * (-v / 2).exp()) - v / 2

    return Target("neal-funnel", sample, log_prob)


def _bent(
    name: str,
    mean: tuple[float, float],
    covariance: tuple[float, float, float],
    there: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
) -> Target:
    """y = there(x) ~ N(mean, C), C = [[a, b], [b, c]], for a map of unit Jacobian whose inverse is `back`."""
    a, b, c = covariance
    root = torch.tensor([[math.sqrt(a), 0.0], [b / math.sqrt(a), math.sqrt(c - b * b / a)]], dtype=torch.float64)
    inverse, log_det = torch.linalg.inv(root), root.diagonal().log().sum().item()
    centre = torch.tensor(mean, dtype=torch.float64)

    def sample(n: int, gen: Generator) -> Tensor:
        z = _noise(n, gen)
        return back(z @ root.T.to(z) + centre.to(z))

    def log_prob(x: Tensor) -> Tensor:
        return _unit((there(x) - centre.to(x)) @ inverse.T.to(x)).sum(-1) - log_det

    return Target(name, sample, log_prob)


def _squiggle() -> Target:
    """y = (x1, x2 + sin 5 x1) ~ N(0, [[2, .25], [.25, .5]])."""

    def there(x: Tensor) -> Tensor:
        return torch.stack((x[..., 0], x[..., 1] + (5 * x[..., 0]).sin()), -1)

    def back(y: Tensor) -> Tensor:
        return torch.stack((y[..., 0], y[..., 1] - (5 * y[..., 0]).sin()), -1)

    return _bent("squiggle", (0.0, 0.0), (2.0, 0.25, 0.5), there, back)


def _mcmc_banana() -> Target:
    """y = (x1 / 2, 2 x2 + 0.4 (x1^2 + 4)) ~ N((0, 4), [[1, .5], [.5, 1]])."""

    def there(x: Tensor) -> Tensor:
        return torch.stack((x[..., 0] / 2, 2 * x[..., 1] + 0.4 * (x[..., 0].square() + 4)), -1)

    def back(y: Tensor) -> Tensor:
        first = 2 * y[..., 0]
        return torch.stack((first, (y[..., 1] - 0.4 * (first.square() + 4)) / 2), -1)

    return _bent("mcmc-banana", (0.0, 4.0), (1.0, 0.5, 1.0), there, back)


def _u1(x: Tensor) -> Tensor:
    first = x[..., 0]
    lobes = torch.logaddexp(-0.5 * ((first - 2) / 0.6).square(), -0.5 * ((first + 2) / 0.6).square())
    off: Tensor = torch.linalg.vector_norm(x, dim=-1) - 2
    return 0.5 * (off / 0.4).square() - lobes


def _sine(x: Tensor) -> Tensor:
    return (0.5 * math.pi * x[..., 0]).sin()


def _u2(x: Tensor) -> Tensor:
    return 0.5 * ((x[..., 1] - _sine(x)) / 0.4).square()


def _u3(x: Tensor) -> Tensor:
    off = x[..., 1] - _sine(x)
    bump = 3 * (-0.5 * ((x[..., 0] - 1) / 0.6).square()).exp()
    return -torch.logaddexp(-0.5 * (off / 0.35).square(), -0.5 * ((off + bump) / 0.35).square())


def _u4(x: Tensor) -> Tensor:
    off = x[..., 1] - _sine(x)
    step = 3 * torch.sigmoid((x[..., 0] - 1) / 0.3)
    return -torch.logaddexp(-0.5 * (off / 0.4).square(), -0.5 * ((off + step) / 0.35).square())


def _boxed(name: str, energy: Callable[[Tensor], Tensor]) -> Callable[[], Target]:
    """exp(-energy) with walls: a cell of a fine grid by its mass, and a uniform point in it."""

    def walled(x: Tensor) -> Tensor:
        beyond = (x.abs() - _EDGE).clamp(min=0) / _WALL
        return -energy(x) - 0.5 * beyond.square().sum(-1)

    def make() -> Target:
        reach = _EDGE + 6 * _WALL
        h = 2 * reach / _CELLS
        axis = -reach + h * (torch.arange(_CELLS, dtype=torch.float64) + 0.5)
        nodes = torch.cartesian_prod(axis, axis)
        mass = walled(nodes).exp() * h * h
        log_z, levels = mass.sum().log().item(), (mass / mass.sum()).cumsum(0)

        def sample(n: int, gen: Generator) -> Tensor:
            u = torch.rand(n, generator=gen, device=gen.device).double().cpu()
            cell = torch.searchsorted(levels, u).clamp(max=len(levels) - 1)
            inside = torch.rand(n, 2, generator=gen, device=gen.device) - 0.5
            return nodes[cell].to(inside) + h * inside

        return Target(name, sample, lambda x: walled(x) - log_z)

    return make


_MADE_BY: dict[str, Callable[[], Target]] = {
    "normal": _normal,
    "mog2": _pair("mog2", 4.0, 0.0),
    "mog2-near": _pair("mog2-near", 2.0, 0.0),
    "mog2-close": _pair("mog2-close", 1.0, 1.0),
    "rosenbrock": _rosenbrock,
    "donut": _donut,
    "neal-funnel": _neal_funnel,
    "squiggle": _squiggle,
    "mcmc-banana": _mcmc_banana,
    "u1": _boxed("u1", _u1),
    "u2": _boxed("u2", _u2),
    "u3": _boxed("u3", _u3),
    "u4": _boxed("u4", _u4),
}
