"""Classifier-free guidance as a denoiser made of a denoiser."""

from __future__ import annotations

from torch import Tensor

from gentk.processes.denoiser import Denoise


def guided(denoiser: Denoise, scale: float) -> Denoise:
    """D_u + scale (D_c - D_u) with D_u the call without a label (Ho & Salimans 2022, arXiv:2207.12598).

    In their notation scale = 1 + w. Scale 1 is the conditional and 0 the unconditional denoiser, at one network call
    instead of two; so is a call with `cond=None`, where the two coincide.
    """
    if scale == 1:
        return denoiser

    def denoise(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        plain = denoiser(x, t, None)
        if cond is None or scale == 0:
            return plain
        return plain + scale * (denoiser(x, t, cond) - plain)

    return denoise


def calls(scale: float) -> int:
    """Network evaluations per call of `guided(denoiser, scale)` with a label."""
    return 1 if scale in (0, 1) else 2
