"""Pictures of functions of the plane: densities and energies as maps, side by side on the same axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def maps(
    panels: Mapping[str, NDArray[np.float64]], extent: tuple[float, float, float, float], side: int = 320
) -> Image.Image:
    """One map per name: values (rows, columns) over `extent` (left, right, bottom, top), row 0 at the bottom.

    Each has its own scale, from its least value (light) to its largest (dark), which its title gives.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side / 100 * len(panels), side / 100 + 0.3), dpi=100, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    for place, (name, values) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        axes.imshow(values, extent=extent, origin="lower", cmap="Blues", interpolation="nearest")
        axes.set_title(f"{name}  {np.nanmin(values):.3g} to {np.nanmax(values):.3g}", fontsize=9)
        axes.tick_params(labelsize=7, length=2, color="#a1a1aa")
        axes.spines[:].set_color("#d4d4d8")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
