"""`points:spiral-8y`, `points:checkerboard-6x`: the anisotropic points of VSDM (arXiv:2405.04795), at their own scale.

By the authors' data.py: standard deviations (2.09, 18.68) and (21.8, 3.63), not of order one as those of
`gentk.targets` are. What is to be shown by them is a transport that copes with that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor


def _spiral(n: int, gen: Generator) -> Tensor:
    """Angle 3 pi sqrt(u) - pi / 2, radius angle + pi, jitter N(0, 0.25^2); times 0.4, and 8 times as high."""
    angle = 3 * math.pi * torch.rand(n, generator=gen).sqrt() - math.pi / 2
    radius = angle + math.pi
    x = torch.stack((radius * angle.cos(), radius * angle.sin()), 1) + 0.25 * torch.randn(n, 2, generator=gen)
    return 0.4 * x * torch.tensor([1.0, 8.0])


def _checkerboard(n: int, gen: Generator) -> Tensor:
    """Uniform on [-2 pi, 2 pi]^2 where sin x and sin y differ in sign, 6 times as wide: half of the draws are kept."""
    parts: list[Tensor] = []
    while sum(map(len, parts)) < n:
        x = (2 * torch.rand(2 * n, 2, generator=gen) - 1) * 2 * math.pi
        parts.append(x[x.sin().prod(1) <= 0])
    return torch.cat(parts)[:n] * torch.tensor([6.0, 1.0])


def _cross4(n: int, gen: Generator) -> Tensor:
    """Four Gaussians of deviation 0.2 at (-+2, 0) and (0, -+2): what FlowDiff's toy learns from noisy points."""
    centres = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]])
    return centres[torch.randint(0, 4, (n,), generator=gen)] + 0.2 * torch.randn(n, 2, generator=gen)


POINTS: dict[str, Callable[[int, Generator], Tensor]] = {
    "spiral-8y": _spiral,
    "checkerboard-6x": _checkerboard,
    "cross4": _cross4,
}
