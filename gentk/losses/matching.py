"""Losses that fit a denoiser to samples."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gentk.processes.denoiser import Denoise
from gentk.processes.process import Process, diffuse, ratio
from gentk.processes.times import flow_time

Matching = Callable[[Denoise, Process, Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""`edm` or `flow`: (denoiser, process, x0, t, eps, cond, sigma_data) -> (B,)."""


def edm(
    denoiser: Denoise, process: Process, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None, sigma_data: float
) -> Tensor:
    """EDM's weighted denoising error (arXiv:2206.00364, table 1), lambda(s) mean|D(x_t, t) - x0|^2: (B, ...) -> (B,).

    lambda = (s^2 + sd^2) / (s sd)^2 with s = sigma / alpha makes the error of an untrained EDM network about 1 at every
    level. t () or (B,) in process time, eps standard normal and independent of x0. The gradient is that of the error
    itself; its minimiser at each level is E[x0 | x_t], whatever lambda is. Pass x0 without a graph.
    """
    s = ratio(process, t.double())
    error = _error(denoiser, process, x0, t, eps, cond)
    return (1 / s.square() + 1 / sigma_data**2).to(error) * error


def flow(
    denoiser: Denoise, process: Process, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None, sigma_data: float
) -> Tensor:
    """Flow matching's error mean|v(x_t, t) - (eps - x0)|^2 (arXiv:2210.02747, arXiv:2209.03003): (B, ...) -> (B,).

    v = (x - D) / t is the velocity on the straight path x = (1 - t) x0 + t eps at flow time t = s / (1 + s), which any
    process's denoiser D has. As eps - x0 = (x - x0) / t, the error is mean|D - x0|^2 / t^2: velocity networks have no
    weight in it. Its minimiser is v = E[eps - x0 | x_t]: eps may depend on x0, by a coupling.
    `sigma_data` is not used.
    """
    error = _error(denoiser, process, x0, t, eps, cond)
    return flow_time(ratio(process, t.double())).pow(-2).to(error) * error


def _error(denoiser: Denoise, process: Process, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor | None) -> Tensor:
    return (denoiser(diffuse(process, x0, t, eps), t, cond) - x0).square().flatten(1).mean(1)
