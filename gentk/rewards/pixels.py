"""Pictures as reward networks take them: checked, resized, normalised.

uint8 pictures go through Pillow, as in the published pipelines, and come out rounded to whole grey levels. Float ones
in [0, 1] are resized as tensors, with antialiasing, and keep their gradient; they are neither rounded nor clipped,
so that bicubic overshoot stays. On a noisy picture the two differ by about a grey level, more at clipped edges.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gentk.errors import RunFailed

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, which BLIP uses, too
STD = (0.26862954, 0.26130258, 0.27577711)


def check(images: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
    """`images` (N, 3, H, W), uint8 as they are or floating in [0, 1] as float32, and N prompts if any.

    Raises RunFailed for another shape, type or range, for NaN, and for another number of prompts.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise RunFailed(f"images have shape {tuple(images.shape)}, expected (N, 3, H, W)")
    if prompts is not None and (isinstance(prompts, str) or len(prompts) != len(images)):
        count = 1 if isinstance(prompts, str) else len(prompts)
        raise RunFailed(f"{count} prompt(s) for {len(images)} images", hint="one prompt for each image")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise RunFailed(f"images are {images.dtype}", hint="uint8, or float in [0, 1]")
    if images.numel() and not images.is_meta:  # on the meta device there are sizes alone
        low, high = images.detach().aminmax()
        if not (low >= -1e-6 and high <= 1 + 1e-6):  # so written, NaN fails as well
            raise RunFailed(
                f"images reach from {low.item():.3g} to {high.item():.3g}, expected [0, 1]",
                hint="networks of this package draw in [-1, 1]: (x + 1) / 2, clipped to [0, 1]",
            )
    return images.float()


def crop(images: Tensor, side: int) -> Tensor:
    """The shorter side resized to `side`, the centre cut out: (N, 3, H, W) -> (N, 3, side, side) float32."""
    height, width = images.shape[2:]
    short = min(height, width)
    size = (int(side * height / short), int(side * width / short))  # truncated, as torchvision does
    if images.dtype == torch.uint8:
        resized = _pillow(images, size, Image.Resampling.BICUBIC)
    else:
        resized = _bicubic(images, size, antialias=True)
    # Banker's rounding, as torchvision has it.
    top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
    return resized[..., top : top + side, left : left + side]


def letterbox(images: Tensor, side: int, *, antialias: bool = True) -> Tensor:
    """The longer side resized to `side` as a tensor, black bars to a square: -> (N, 3, side, side) float32.

    HPS v2's preparation; older torchvision did not antialias tensors, and some published figures may bear that.
    """
    x = images.float() / 255 if images.dtype == torch.uint8 else images
    scale = side / max(x.shape[2:])
    height, width = (round(length * scale) for length in x.shape[2:])
    x = _bicubic(x, (height, width), antialias=antialias)
    below, right = side - height, side - width
    return F.pad(x, (right // 2, right - right // 2, below // 2, below - below // 2))


def square_lanczos(images: Tensor, side: int) -> Tensor:
    """The largest centred square, resized by Lanczos: (N, 3, H, W) uint8 -> (N, 3, side, side) uint8.

    Raises RunFailed for float images: this resize exists in Pillow only.
    """
    if images.dtype != torch.uint8:
        raise RunFailed("a Lanczos resize takes uint8 images; it has no gradient")
    height, width = images.shape[2:]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = images[..., top : top + short, left : left + short]
    return (_pillow(square, (side, side), Image.Resampling.LANCZOS) * 255).round().to(torch.uint8)


def normalise(x: Tensor) -> Tensor:
    """(x - mean) / std per channel."""
    mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


def _bicubic(x: Tensor, size: tuple[int, int], *, antialias: bool) -> Tensor:
    if size == tuple(x.shape[2:]):
        return x
    return F.interpolate(x, size, mode="bicubic", antialias=antialias, align_corners=False)


def _pillow(images: Tensor, size: tuple[int, int], resampling: Image.Resampling) -> Tensor:
    """Each picture resized by Pillow: uint8 -> float32 in [0, 1], a whole number of 255ths."""
    if size == tuple(images.shape[2:]):
        return images.float() / 255
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    resized = [np.asarray(Image.fromarray(a).resize((size[1], size[0]), resampling)) for a in arrays]
    out = torch.from_numpy(np.stack(resized)) if resized else images.new_zeros(0, *size, 3).cpu()
    return out.permute(0, 3, 1, 2).to(images.device).float() / 255
