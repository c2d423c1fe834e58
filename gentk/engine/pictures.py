"""Pictures of samples: grids large enough to see, grids side by side, points in the plane. No torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_PAPER = (255, 255, 255)
_INK = (24, 24, 27)
_EDGE = (212, 212, 216)
INK = "#3b5bdb"
"""The colour of what is drawn into charts."""
_GAP = 2
_MARGIN = 16
_TILE = 56
"""Side in pixels that a small image is enlarged to, at least."""


def grid(images: Any, columns: int | None = None, scale: int | None = None) -> Image.Image:
    """The images row by row, each pixel enlarged to `scale` x `scale` without smoothing.

    `images`: uint8 (N, C, H, W), C = 1 (grey) or 3 (RGB), N >= 1; a numpy array or a CPU tensor. `columns` defaults to
    the nearest square, `scale` to what makes a tile at least 56 pixels wide (7 for 8x8 digits, 2 for CIFAR-10).
    """
    tiles = _checked(images)
    n, _, height, width = tiles.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    scale = scale or max(1, math.ceil(_TILE / max(height, width)))
    rows = math.ceil(n / columns)
    tall, wide = height * scale + _GAP, width * scale + _GAP
    sheet = np.empty((rows * tall + _GAP, columns * wide + _GAP, 3), np.uint8)
    sheet[:] = _EDGE
    for i, tile in enumerate(tiles):
        top, left = i // columns * tall + _GAP, i % columns * wide + _GAP
        pixels = tile.repeat(scale, axis=1).repeat(scale, axis=2).transpose(1, 2, 0)  # a grey tile broadcasts to RGB
        sheet[top : top + height * scale, left : left + width * scale] = pixels
    for i in range(n, rows * columns):  # places of the last row that no image fills
        top, left = i // columns * tall + _GAP, i % columns * wide + _GAP
        sheet[top:, left:] = _PAPER
    return Image.fromarray(sheet)


def side_by_side(panels: Mapping[str, Any], columns: int | None = None, scale: int | None = None) -> Image.Image:
    """A grid for each name with the name above it: image k of one belongs to image k of the others.

    `panels`: name -> uint8 (N, C, H, W), all of one shape, e.g. the teacher's and the student's answers to the same
    noise.
    """
    if len({np.shape(each) for each in panels.values()}) != 1:
        shapes = ", ".join(str(tuple(np.shape(each))) for each in panels.values())
        raise ValueError(f"panels need equal shapes, not {shapes}")
    grids = [grid(each, columns, scale) for each in panels.values()]
    font = ImageFont.load_default(size=16)
    width = max(grids[0].width, *(math.ceil(font.getlength(title)) for title in panels))
    height, top = grids[0].height, 16 + 2 * _MARGIN
    sheet = Image.new("RGB", (len(grids) * (width + _MARGIN) + _MARGIN, top + height + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for k, (picture, title) in enumerate(zip(grids, panels, strict=True)):
        x = _MARGIN + k * (width + _MARGIN)
        draw.text((x, top / 2), title, fill=_INK, font=font, anchor="lm")
        sheet.paste(picture, (x, top))
    return sheet


def scatter(points: Mapping[str, Any], side: int = 360) -> Image.Image:
    """One panel per name with its points, all on the same axes; what falls outside the axes is counted in the title.

    `points`: name -> (N, 2) in data coordinates. The axes hold the central 98 % of the first set, which is the one to
    compare with, and half as much again, so that no stray sample can shrink the picture. `side` is in pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = {name: np.asarray(each, dtype=np.float64) for name, each in points.items()}
    for name, each in sets.items():
        if each.ndim != 2 or each.shape[1] != 2:
            raise ValueError(f"{name}: points must be (N, 2), not {each.shape}")
    first = next(iter(sets.values()))
    first = first[np.isfinite(first).all(axis=1)]
    low, high = np.quantile(first, [0.01, 0.99], axis=0) if len(first) else (np.full(2, -1.0), np.full(2, 1.0))
    middle, reach = (low + high) / 2, max(0.75 * float((high - low).max()), 1e-6)

    figure = Figure(figsize=(side / 100 * len(sets), side / 100 + 0.3), dpi=100, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)  # a canvas of our own: pyplot would keep the figure and choose a display
    for place, (name, each) in enumerate(sets.items(), start=1):
        inside = (np.abs(each - middle) <= reach).all(axis=1)
        axes = figure.add_subplot(1, len(sets), place)
        alpha = float(np.clip(1200 / max(len(each), 1), 0.12, 0.7))
        axes.scatter(each[inside, 0], each[inside, 1], s=4, alpha=alpha, color=INK, linewidths=0)
        outside = len(each) - int(inside.sum())
        axes.set_title(name + (f"  ({outside} outside)" if outside else ""), fontsize=10)
        x, y = ((centre - reach, centre + reach) for centre in middle)
        axes.set(xlim=x, ylim=y, aspect="equal")
        axes.tick_params(labelsize=7, length=2, color="#a1a1aa")
        axes.spines[:].set_color("#d4d4d8")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def chart(draw: Callable[[Any], None], width: int = 520, height: int = 320) -> Image.Image:
    """What `draw(axes)` draws on one pair of matplotlib's axes, `width` x `height` pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=8, length=2, color="#a1a1aa")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#d4d4d8")
    draw(axes)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def save(image: Image.Image, path: Path) -> Path:
    """Write `image` as PNG and return `path`. The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        image.save(fresh, format="PNG", optimize=True)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def _checked(images: Any) -> NDArray[np.uint8]:
    tiles = np.asarray(images)
    if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[1] not in (1, 3) or not len(tiles):
        raise ValueError(f"images must be uint8 (N, 1 or 3, H, W), N >= 1; not {tiles.dtype} {tiles.shape}")
    return tiles
