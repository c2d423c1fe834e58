"""Losses that fit a denoiser to samples."""

from __future__ import annotations

from torch import Tensor

from gentk.processes.denoiser import Denoiser
from gentk.processes.process import diffuse, ratio


def edm(denoiser: Denoiser, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None, sigma_data: float) -> Tensor:
    """EDM's weighted denoising error (arXiv:2206.00364, table 1), lambda(s) mean|D(x_t, t) - x0|^2: (B, ...) -> (B,).

    lambda = (s^2 + sd^2) / (s sd)^2 with s = sigma / alpha makes the error of an untrained EDM network about 1 at every
    level. t () or (B,) in process time, eps standard normal and independent of x0. The gradient is that of the error
    itself; its minimiser at each level is E[x0 | x_t], whatever lambda is. Pass x0 without a graph.
    """
    s = ratio(denoiser.process, t.double())
    error: Tensor = (denoiser(diffuse(denoiser.process, x0, t, eps), t, cond) - x0).square().flatten(1).mean(1)
    return (1 / s.square() + 1 / sigma_data**2).to(error) * error
