"""Thresholding: a denoiser whose output is kept within the range of the data."""

from __future__ import annotations

import math

from torch import Tensor

from gentk.processes.denoiser import Denoise
from gentk.processes.process import expand
from gentk.recipe import schema


def thresholded(denoiser: Denoise, section: schema.Threshold) -> Denoise:
    """The denoiser with its output x0 (B, ...) clipped, for images in [-1, 1]; put it around `guided`, not inside.

    static   to [low, high]
    dynamic  per sample to [-s, s] and divided by s, s the quantile of |x0|, at least 1 and at most `max`
             (Imagen, Saharia et al. 2022, arXiv:2205.11487, section 2.3)

    Meant against the saturation that strong guidance brings. It breaks the order of solvers: where a value of x0 meets
    its limit the denoiser has a kink, which costs h^2, and the order of a method of third order or more falls to two.
    """

    def denoise(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        x0 = denoiser(x, t, cond)
        match section:
            case schema.StaticThreshold():
                return x0.clamp(section.low, section.high)
            case schema.DynamicThreshold():
                s = expand(_quantile(x0.abs().flatten(1), section.quantile).clamp(1.0, section.max), x0)
                return x0.clamp(-s, s) / s

    return denoise


def _quantile(x: Tensor, q: float) -> Tensor:
    """The q-quantile of every row of x (B, m), linear between the two nearest values: (B,).

    As torch.quantile, but without sorting what is below, and without the limit of 2^24 numbers that it long had.
    """
    place = q * (x.shape[1] - 1)
    below = math.floor(place)
    top = x.topk(x.shape[1] - below).values  # from the largest down to the one below the place
    return top[:, -1].lerp(top[:, max(top.shape[1] - 2, 0)], place - below)
