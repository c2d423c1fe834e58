"""Diagnostics of Markov chains: effective sample size and split R-hat (Vehtari et al. 2021, arXiv:1903.08008).

Both split every chain into two halves, so that a drift within a chain counts like a difference between chains. They
judge the mean of what they are given, for which means and variances must exist; ranks are not taken.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gentk.errors import RunFailed


def split_r_hat(draws: Tensor) -> Tensor:
    """sqrt(pooled variance / within-chain variance), near 1 if the chains agree.

    draws (T, n, ...) -> (...) float64, one figure per coordinate. The authors ask for less than 1.01. Infinite for
    chains that stand still at different points, NaN if all stand at the same one. Raises RunFailed as
    `effective_sample_size` does.
    """
    x = _halves(draws)
    within = x.var(0).mean(0)
    return torch.sqrt(_pooled(x) / within).reshape(draws.shape[2:])


def effective_sample_size(draws: Tensor) -> Tensor:
    """How many independent draws would give means with the same standard error as all n chains together.

    draws (T, n, ...) -> (...) float64, one figure per coordinate. n T / tau with tau the integrated autocorrelation
    time, its sum cut by Geyer's (1992) initial monotone sequence. At most n T log10(n T), as in Stan: chains that swing
    around the mean can beat independent draws, but not by any factor. NaN if nothing ever moved. Raises RunFailed below
    8 draws, for NaN or for infinity.
    """
    x = _halves(draws)
    count, total = len(x), x.shape[0] * x.shape[1]
    # Zeros to twice the length keep the ends of a chain from meeting in the circular convolution.
    spectrum = torch.fft.rfft(x - x.mean(0), n=2 * count, dim=0).abs().square().mean(1)
    covariance = torch.fft.irfft(spectrum, n=2 * count, dim=0)[:count] / count
    pooled = _pooled(x)
    rho = 1 - (covariance[0] * count / (count - 1) - covariance) / pooled
    rho[0] = 1
    # Sums over even-odd pairs of lags are positive and fall for a reversible chain; what does not is noise.
    pairs = rho[: (count - 1) // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    signal = (pairs > 0).cumprod(0).bool()
    signal[-1] = False  # chains that never forget, too, are cut before the last lags, of one or two terms each
    falling = pairs.where(signal, math.inf).cummin(0).values.where(signal, 0)
    # The even lag after the cut is half of a pair; alternating chains need it, for others it is next to nothing.
    after = rho.gather(0, 2 * signal.sum(0, keepdim=True))[0]
    tau = 2 * falling.sum(0) - 1 + after.clamp(min=0)
    size: Tensor = total / tau.clamp(min=1 / math.log10(total))
    return size.where(pooled > 0, math.nan).reshape(draws.shape[2:])


def _pooled(x: Tensor) -> Tensor:
    """The variance of all chains, from within and between them: (N, M, D) -> (D,)."""
    return x.var(0, correction=0).mean(0) + x.mean(0).var(0)


def _halves(draws: Tensor) -> Tensor:
    """(T, n, ...) -> (T // 2, 2 n, D) in float64; of an odd T the middle draw is left out."""
    if draws.ndim < 2:
        raise ValueError(f"draws have shape {tuple(draws.shape)}, expected (T, n, ...)")
    if len(draws) < 8:
        raise RunFailed(f"{len(draws)} draws of each chain are too few to judge it", hint="at least 8")
    x = draws.detach().double().reshape(*draws.shape[:2], -1)
    if not x.isfinite().all():
        raise RunFailed("the draws have NaN or infinity")
    half = len(x) // 2
    return torch.cat([x[:half], x[-half:]], 1)
