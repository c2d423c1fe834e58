"""Trajectories of points under a sampler: how straight they are, in figures without a scale, and their picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from gentk.engine.pictures import INK, chart

Part = Callable[[int, int, Callable[[Tensor, Tensor], None]], Tensor]
"""(first, n, trace) -> samples `first` to `first + n`, after `trace(t, x)` at every grid point."""


def followed(part: Part, n: int) -> tuple[Tensor, Tensor]:
    """Samples 0 to n (n, d) and their paths (steps + 1, n, d), noise first."""
    path: list[Tensor] = []
    x = part(0, n, lambda _, x: path.append(x.float().cpu()))
    return x, torch.stack(path)


def straightness(path: Tensor) -> dict[str, float]:
    """Of paths (T, n, d) of a flow: `chord_arc`, the mean of |end - start| / length of the path, 1 if straight; and

    `energy`, T times the sum of squared steps over the squared chord, its median: 1 for a straight line in equal steps,
    and the same for paths of another scale, which the published figures are not. Paths that go nowhere do not count.
    """
    steps = path.double().diff(dim=0)
    chord = (path[-1] - path[0]).double().norm(dim=1)
    arc = steps.norm(dim=2).sum(0)
    moving = chord > 1e-9
    energy = len(steps) * steps.square().sum((0, 2))[moving] / chord[moving].square()
    return {"chord_arc": float((chord[moving] / arc[moving]).mean()), "energy": float(energy.median())}


def paths_picture(groups: Mapping[str, Tensor], most: int = 150) -> Image:
    """The first paths (T, n, 2) of each group in its own colour, where they start (rings) and where they end (dots)."""

    def on(axes: Any) -> None:
        for i, (name, path) in enumerate(groups.items()):
            colour = INK if len(groups) == 1 else f"C{i}"
            part = path[:, :most].numpy()
            axes.plot(part[..., 0], part[..., 1], color=colour, lw=0.5, alpha=0.4)
            axes.scatter(part[0, :, 0], part[0, :, 1], s=6, facecolors="none", edgecolors="#71717a", lw=0.5)
            axes.scatter(part[-1, :, 0], part[-1, :, 1], s=5, color=colour, label=name, lw=0)
        if len(groups) > 1:
            axes.legend(fontsize=7, frameon=False)

    return chart(on, 520, 520)
