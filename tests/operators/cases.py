"""Every operator, on 8 x 8 images, for the tests that hold for all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gentk import operators
from gentk.operators import Operator
from gentk.operators.composed import Composed
from gentk.recipe.operators import Blur, Box, Compose, Downsample, Grey, Inpaint, MotionBlur, Noise

B = 3
COLOUR, GREY = (3, 8, 8), (1, 8, 8)


def gens(n: int = B, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + i) for i in range(n)]


def text_mask(folder: Path) -> str:
    values = (np.arange(100).reshape(10, 10) % 3 > 0).astype(np.uint8)
    np.savez(folder / "mask.npz", mask=values)
    return str(folder / "mask.npz")


def every(folder: Path) -> dict[str, Operator]:
    """By name; a mask of each image's own where one is drawn, for a batch of B."""
    sections = {
        "noise": Noise(name="noise"),
        "inpaint": Inpaint(name="inpaint", keep=(0.2, 0.8)),
        "mask file": Inpaint(name="inpaint", mask=text_mask(folder), corner=(1, 2)),
        "box": Box(name="box", height=3, width=4),
        "random box": Box(name="box", height=3, width=4, place="random"),
        "blur": Blur(name="blur", size=5, std=1.0),
        "wide blur": Blur(name="blur", size=7, std=2.0),
        "motion": MotionBlur(name="motion-blur", length=5, angle=30),
        "straight motion": MotionBlur(name="motion-blur", length=4, angle=0),
        "downsample": Downsample(name="downsample", factor=2),
        "grey": Grey(name="grey"),
        "blur, downsample": Compose(name="compose", parts=(Blur(name="blur"), Downsample(name="downsample"))),
        "grey, box": Compose(name="compose", parts=(Grey(name="grey"), Box(name="box"))),
        "one of one": Compose(name="compose", parts=(Inpaint(name="inpaint"),)),
    }
    return {name: operators.build(section, COLOUR, gens()) for name, section in sections.items()}


def images(shape: tuple[int, ...], seed: int = 0, n: int = B) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def row(op: Operator, i: int) -> Operator:
    """The operator of image i alone."""
    from gentk.operators.masks import Masked

    if isinstance(op, Masked) and len(op.mask) > 1:
        return Masked(op.shape, op.mask[i : i + 1])
    if isinstance(op, Composed):
        return Composed(tuple(row(part, i) for part in op.parts))
    return op
