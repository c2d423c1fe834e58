"""Denoised images against clean ones, beside what needs no model: the noisy image, and a Gaussian blur tuned to it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gentk.metrics.paired import psnr

_WIDTHS = tuple(0.2 + 0.1 * i for i in range(25))  # deviations of the blur tried, in pixels


def mean_psnr(x: Tensor, clean: Tensor) -> float:
    """Mean over images of the PSNR in dB, x clipped to [-1, 1]; both (N, C, H, W)."""
    return float(psnr(x.clamp(-1, 1), clean, data_range=2).mean())


def blurred(x: Tensor, deviation: float) -> Tensor:
    """x (N, C, H, W) smoothed by a Gaussian of `deviation` pixels, the border repeated."""
    reach = max(1, int(3 * deviation + 0.5))
    t = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    w = torch.exp(-t.square() / (2 * deviation**2))
    w = (w / w.sum()).expand(x.shape[1], 1, -1)
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, w[:, :, :, None], groups=x.shape[1])
    return F.conv2d(rows, w[:, :, None, :], groups=x.shape[1])


def tuned_blur(noisy: Tensor, clean: Tensor) -> float:
    """The deviation in pixels whose blur of `noisy` has the best mean PSNR: to be found on other images than scored."""
    return max(_WIDTHS, key=lambda deviation: mean_psnr(blurred(noisy, deviation), clean))
