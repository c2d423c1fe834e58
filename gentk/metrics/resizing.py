"""How the image protocols resize: four rules, hence figures that cannot be compared.

Parmar et al. 2022 (arXiv:2104.11222) found the rule to move the FID by more than papers differ by: on white noise of 32
pixels, enlarged to 299, the first three are 36 to 42 grey levels apart on average.
All take images (N, C, H, W) of bytes and return float32 in [0, 255]; the aspect is not kept.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def tf1_bilinear(images: Tensor, side: int) -> Tensor:
    """TensorFlow 1's `resize_bilinear`: pixel i of the result lies at i * H / side, corner on corner, no antialias.

    Not half-pixel centres: the picture moves by up to half a pixel. Inside the TF graph that the FID was defined by.
    """
    top, bottom, down = _taps(images.shape[2], side, images.device)
    left, right, across = _taps(images.shape[3], side, images.device)
    x = images.float()
    # Rows first, on the fewer columns, when enlarging; the order matters to the last bit of rounding only.
    x = torch.lerp(x[:, :, top], x[:, :, bottom], down[:, None])
    return torch.lerp(x[..., left], x[..., right], across)


@lru_cache(maxsize=8)
def _taps(size: int, side: int, where: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Indices (side,) of the two source pixels and the weight of the second, positions in float32 as TensorFlow's."""
    at = torch.arange(side, dtype=torch.float32, device=where) * torch.tensor(size / side, dtype=torch.float32)
    low = at.long().clamp(max=size - 1)
    return low, (low + 1).clamp(max=size - 1), at - low


def torch_bilinear(images: Tensor, side: int) -> Tensor:
    """`F.interpolate(bilinear, align_corners=False)`: half-pixel centres, no antialias; the rule of pytorch-fid."""
    return F.interpolate(images.float(), (side, side), mode="bilinear", align_corners=False)


def pil_bicubic(images: Tensor, side: int) -> Tensor:
    """Pillow's antialiased bicubic on each channel as floats, clipped to [0, 255], not rounded: that of clean-fid."""
    planes = images.cpu().reshape(-1, *images.shape[2:]).numpy().astype(np.float32)
    out = np.empty((len(planes), side, side), np.float32)
    for plane, target in zip(planes, out, strict=True):
        target[:] = _bicubic(plane, side)
    return torch.from_numpy(out.clip(0, 255)).reshape(*images.shape[:2], side, side)


def pil_bicubic_bytes(images: Tensor, side: int) -> Tensor:
    """Pillow's antialiased bicubic on RGB bytes, rounded to bytes: that of dgm-eval for DINOv2. Takes C = 3."""
    pictures = images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
    out = np.stack([_bicubic(picture, side) for picture in pictures])
    return torch.from_numpy(out).permute(0, 3, 1, 2).float()


def _bicubic(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
