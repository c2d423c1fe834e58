"""Two-dimensional densities by name, with exact samples and, where it exists in closed form, log-density and score.

All have values of order one: the root mean square per coordinate is between 0.45 and 1.5. Log-densities are normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gentk.errors import RecipeError


@dataclass(frozen=True)
class Target:
    """A density on the plane.

    `sample(n, gen)` draws (n, 2) independent points in float32 on the generator's device. `log_prob` maps (..., 2) to
    (...), normalised, in the dtype of its argument; it is None where the density has no closed form or is not smooth.
    `centres` are the modes of a mixture.
    """

    name: str
    sample: Callable[[int, Generator], Tensor]
    log_prob: Callable[[Tensor], Tensor] | None = None
    centres: tuple[tuple[float, ...], ...] | None = None

    def score(self, x: Tensor) -> Tensor:
        """The gradient of log_prob at x (..., 2), same shape, detached. Raises RecipeError if there is no log_prob."""
        if self.log_prob is None:
            raise RecipeError(f"target `{self.name}` has exact samples but no score", hint=f"with score: {_scored()}")
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.log_prob(x).sum(), x)
        return grad


def names() -> tuple[str, ...]:
    """The names of the targets here, all of values of order one."""
    return tuple(TARGETS)


def _scored() -> str:
    return ", ".join(name for name, target in TARGETS.items() if target.log_prob is not None)


def _normal(x: Tensor, mean: Tensor | float, std: Tensor | float) -> Tensor:
    """The log-density of N(mean, std^2) at x, elementwise."""
    log_std = std.log() if isinstance(std, Tensor) else math.log(std)
    return -0.5 * ((x - mean) / std) ** 2 - log_std - 0.5 * math.log(2 * math.pi)


def _noise(n: int, gen: Generator) -> Tensor:
    return torch.randn(n, 2, generator=gen, device=gen.device)


def _uniform(n: int, gen: Generator) -> Tensor:
    return torch.rand(n, generator=gen, device=gen.device)


def _choice(n: int, count: int, gen: Generator) -> Tensor:
    return torch.randint(count, (n,), generator=gen, device=gen.device)


def _polar(radius: Tensor | float, angle: Tensor) -> Tensor:
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1)


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    """x (..., 2) turned anticlockwise by `angle` (...)."""
    c, s = angle.cos(), angle.sin()
    return torch.stack((c * x[..., 0] - s * x[..., 1], s * x[..., 0] + c * x[..., 1]), -1)


def _gaussian() -> Target:
    """N(m, L L^T) with correlation 0.8, off the origin."""
    mean = torch.tensor((0.5, -0.3), dtype=torch.float64)
    root = torch.tensor(((1.0, 0.0), (0.4, 0.3)), dtype=torch.float64)
    inverse, log_det = torch.linalg.inv(root), root.diagonal().log().sum().item()

    def sample(n: int, gen: Generator) -> Tensor:
        z = _noise(n, gen)
        return z @ root.T.to(z) + mean.to(z)

    def log_prob(x: Tensor) -> Tensor:
        return _normal((x - mean.to(x)) @ inverse.T.to(x), 0.0, 1.0).sum(-1) - log_det

    return Target("gaussian", sample, log_prob)


def mixture(name: str, centres: Tensor, std: float) -> Target:
    """Equal weights, common isotropic standard deviation; `centres` (K, 2) float64."""

    def sample(n: int, gen: Generator) -> Tensor:
        z = _noise(n, gen)
        return centres.to(z)[_choice(n, len(centres), gen)] + std * z

    def log_prob(x: Tensor) -> Tensor:
        parts = _normal(x[..., None, :], centres.to(x), std).sum(-1)
        return torch.logsumexp(parts, -1) - math.log(len(centres))

    return Target(name, sample, log_prob, tuple(map(tuple, centres.tolist())))


def _ring8() -> Target:
    """Eight Gaussians of standard deviation 0.1 on a circle of radius sqrt(2)."""
    return mixture("ring8", _polar(math.sqrt(2), torch.arange(8, dtype=torch.float64) * (math.pi / 4)), 0.1)


def _grid25() -> Target:
    """Twenty-five Gaussians of standard deviation 0.05 on a 5 x 5 grid of spacing 0.7."""
    axis = 0.7 * torch.arange(-2, 3, dtype=torch.float64)
    return mixture("grid25", torch.cartesian_prod(axis, axis), 0.05)


def _rings() -> Target:
    """Circles of radius R = 0.6, 1.2, 1.8 blurred by N(0, 0.08^2 I): the radius has Rice's law.

    Each circle's density is exp(-(r^2 + R^2) / 2 s^2) I0(r R / s^2) / 2 pi s^2; `i0e` is I0 without its overflow.
    """
    radii, std = torch.tensor((0.6, 1.2, 1.8), dtype=torch.float64), 0.08

    def sample(n: int, gen: Generator) -> Tensor:
        z = _noise(n, gen)
        return _polar(radii.to(z)[_choice(n, 3, gen)], 2 * math.pi * _uniform(n, gen)) + std * z

    def log_prob(x: Tensor) -> Tensor:
        r, centre = torch.linalg.vector_norm(x, dim=-1, keepdim=True), radii.to(x)
        parts = -0.5 * ((r - centre) / std) ** 2 + torch.special.i0e(r * centre / std**2).log()
        return torch.logsumexp(parts, -1) - math.log(3 * 2 * math.pi * std**2)

    return Target("rings", sample, log_prob)


def _pinwheel() -> Target:
    """Five Gaussian arms along the radius, twisted by an angle that grows with |x|.

    The twist (r, angle) -> (r, angle + 1.5 r) keeps areas, so the density is that of the straight arms at the point
    turned back. The familiar pinwheel turns by a function of a latent instead and has no closed form.
    """
    arms, mean, stds, rate = 5, (1.2, 0.0), (0.35, 0.1), 1.5
    angles = 2 * math.pi / arms * torch.arange(arms, dtype=torch.float64)

    def sample(n: int, gen: Generator) -> Tensor:
        z = _noise(n, gen)
        straight = z * z.new_tensor(stds) + z.new_tensor(mean)
        return _turn(straight, angles.to(z)[_choice(n, arms, gen)] + rate * straight.norm(dim=-1))

    def log_prob(x: Tensor) -> Tensor:
        back = -angles.to(x) - rate * torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        straight = _turn(x[..., None, :], back)
        parts = _normal(straight, x.new_tensor(mean), x.new_tensor(stds)).sum(-1)
        return torch.logsumexp(parts, -1) - math.log(arms)

    return Target("pinwheel", sample, log_prob)


def _banana() -> Target:
    """x1 ~ N(0, 1), x2 | x1 ~ N(0.6 (x1^2 - 1), 0.3^2): Haario, Saksman and Tamminen (1999), rescaled."""
    bend, std = 0.6, 0.3

    def sample(n: int, gen: Generator) -> Tensor:
        z = _noise(n, gen)
        return torch.stack((z[:, 0], bend * (z[:, 0] ** 2 - 1) + std * z[:, 1]), -1)

    def log_prob(x: Tensor) -> Tensor:
        a, b = x.unbind(-1)
        return _normal(a, 0.0, 1.0) + _normal(b, bend * (a**2 - 1), std)

    return Target("banana", sample, log_prob)


def _funnel() -> Target:
    """x1 ~ N(0, 1), x2 | x1 ~ N(0, e^x1): Neal's funnel (2003, section 8) with the neck's deviation 1 instead of 3."""

    def sample(n: int, gen: Generator) -> Tensor:
        z = _noise(n, gen)
        return torch.stack((z[:, 0], (z[:, 0] / 2).exp() * z[:, 1]), -1)

    def log_prob(x: Tensor) -> Tensor:
        a, b = x.unbind(-1)
        return _normal(a, 0.0, 1.0) + _normal(b, 0.0, (a / 2).exp())

    return Target("funnel", sample, log_prob)


def _checkerboard() -> Target:
    """Uniform on the eight dark squares of a 4 x 4 board over [-2, 2]^2; a step density has no score."""

    def sample(n: int, gen: Generator) -> Tensor:
        square = _choice(n, 8, gen)
        row = square // 2
        column = 2 * (square % 2) + row % 2
        corner = torch.stack((column, row), -1) - 2
        return corner + torch.rand(n, 2, generator=gen, device=gen.device)

    return Target("checkerboard", sample)


def _two_moons() -> Target:
    """Two interleaved half circles of radius 1 with noise of deviation 0.08, centred."""

    def sample(n: int, gen: Generator) -> Tensor:
        z = _noise(n, gen)
        upper = _polar(1.0, math.pi * _uniform(n, gen)) - z.new_tensor((0.5, 0.25))
        # The second moon is the first one turned by 180 degrees about the origin.
        sign = 1 - 2 * _choice(n, 2, gen)[:, None]
        return sign * upper + 0.08 * z

    return Target("two-moons", sample)


def _spiral() -> Target:
    """Archimedean spiral of one and a half turns, radius 0 to 2, with noise of deviation 0.06."""

    def sample(n: int, gen: Generator) -> Tensor:
        # The arc grows like the angle, so its square root makes the points spread evenly along the line.
        along = _uniform(n, gen).sqrt()
        return _polar(2 * along, 3 * math.pi * along) + 0.06 * _noise(n, gen)

    return Target("spiral", sample)


TARGETS = {
    target.name: target
    for target in (
        _gaussian(),
        _ring8(),
        _grid25(),
        _rings(),
        _pinwheel(),
        _banana(),
        _funnel(),
        _checkerboard(),
        _two_moons(),
        _spiral(),
    )
}
