"""Inpainting: pixels are kept or hidden, by a mask of each image's own or one for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.operators import Gain
from gentk.recipe.operators import Box


@dataclass(frozen=True, eq=False)
class Masked:
    """H x = mask x, with 0 for what is hidden: `mask` (1 or B, 1, S, S) of 0 and 1, shared by the channels."""

    shape: tuple[int, ...]
    mask: Tensor

    @property
    def measured(self) -> tuple[int, ...]:
        """Shape of one y."""
        return self.shape

    def __call__(self, x: Tensor) -> Tensor:
        """mask x."""
        return x * self.mask.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """mask y."""
        return y * self.mask.to(y)

    def seen(self, y: Tensor) -> Tensor:
        """mask y."""
        return y * self.mask.to(y)

    def spectral(self, x: Tensor, f: Gain) -> Tensor:
        """f(mask) x."""
        return x * f(self.mask.double()).to(x)


def random(keep: tuple[float, float], shape: tuple[int, ...], gens: Sequence[torch.Generator]) -> Tensor:
    """A mask for each generator, (B, 1, H, W): its share of kept pixels drawn from `keep`, then every pixel.

    A mask in which nothing was kept keeps one pixel after all: an image of which nothing is known cannot be restored.
    """
    low, high = keep
    made = []
    for gen in gens:
        share = low + (high - low) * torch.rand((), generator=gen)
        order = torch.rand(shape[1:], generator=gen)
        mask = (order < share).float()
        if not mask.any():
            mask.view(-1)[order.argmin()] = 1.0
        made.append(mask)
    if not made:
        raise ValueError("random masks need a generator for each image")
    return torch.stack(made)[:, None]


def box(section: Box, shape: tuple[int, ...], gens: Sequence[torch.Generator]) -> Tensor:
    """Masks that hide a rectangle: (1, 1, H, W), or (B, 1, H, W) at random places."""
    _, height, width = shape
    if section.height > height or section.width > width or (section.height, section.width) == (height, width):
        raise RecipeError(
            f"operator: a box of {section.height} x {section.width} leaves nothing of images of {height} x {width}",
            hint="--set operator.height=... operator.width=...",
        )
    ends = height - section.height + 1, width - section.width + 1
    places = [(ends[0] // 2, ends[1] // 2)]
    if section.place == "random":
        places = [tuple(int(torch.randint(end, (), generator=gen)) for end in ends) for gen in gens]  # type: ignore[misc]
    masks = torch.ones(len(places), 1, height, width)
    for mask, (top, left) in zip(masks, places, strict=True):
        mask[:, top : top + section.height, left : left + section.width] = 0.0
    return masks


def read(name: str, shape: tuple[int, ...], corner: tuple[int, int]) -> Tensor:
    """The mask in a file, its part from `corner` on: (1, 1, H, W) of 0 and 1.

    Raises MissingAsset where there is no file, GentkError where it holds no mask, RecipeError where it is smaller than
    the images or keeps no pixel of them.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise MissingAsset(f"operator.mask: {path}: no such file", hint=".npz with the key `mask`, .npy or a picture")
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                values = held["mask"]
        else:
            with Image.open(path) as picture:
                values = np.asarray(picture.convert("L"))
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        raise GentkError(
            f"operator.mask: {path}: not a mask: {error}", hint=".npz with the key `mask`, .npy or a picture"
        ) from error
    if values.ndim != 2:
        raise GentkError(f"operator.mask: {path}: holds an array of shape {values.shape}, a mask has rows and columns")
    _, height, width = shape
    top, left = corner
    part = values[top : top + height, left : left + width]
    if part.shape != (height, width):
        raise RecipeError(
            f"operator.mask: {path}: {values.shape[0]} x {values.shape[1]} from {top}, {left} on does not cover images "
            f"of {height} x {width}",
            hint="another mask, or another operator.corner",
        )
    mask = torch.from_numpy((part > 0).astype(np.float32))
    if not mask.any():
        raise RecipeError(f"operator.mask: {path}: not one pixel is kept", hint="pixels above 0 are kept")
    return mask[None, None]
