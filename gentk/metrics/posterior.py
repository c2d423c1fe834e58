"""What draws of a posterior are worth: their mean and deviation, and how often they hold the truth."""

from __future__ import annotations

import math

import torch
from scipy.special import stdtrit
from torch import Tensor


def mean_and_std(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Over the draws (B, K, ...) of each image: (B, ...) twice; the unbiased variance's root, 0 for K = 1."""
    mean = draws.mean(1)
    return mean, draws.std(1) if draws.shape[1] > 1 else torch.zeros_like(mean)


def coverage(truth: Tensor, draws: Tensor, *, level: float = 0.9) -> float:
    """The share of numbers of truth (B, ...) within the central `level` interval that K draws (B, K, ...) predict.

    mean -+ t sqrt(1 + 1 / K) std with Student's t of K - 1: for draws and truth of one normal law exactly `level` in
    the mean, for every K >= 2. Numbers that the draws agree on (a pixel that was measured) count by equality to
    rounding.
    """
    k = draws.shape[1]
    if k < 2:
        raise ValueError("a spread needs two draws")
    mean, std = mean_and_std(draws.double())
    reach = float(stdtrit(k - 1, 0.5 + level / 2)) * math.sqrt(1 + 1 / k) * std
    return float(((truth.double() - mean).abs() <= reach + 1e-6).double().mean())


def z_rms(truth: Tensor, draws: Tensor) -> float:
    """Root mean square of (truth - mean) / std: 1 for draws as wide as they are wrong, but for the scatter of std.

    The mean square of Student's t with K - 1 degrees, (K - 1) / (K - 3), and the mean's own variance are taken out;
    NaN for K < 4, or where no number has a spread.
    """
    k = draws.shape[1]
    mean, std = mean_and_std(draws.double())
    some = std > 1e-6
    if k < 4 or not bool(some.any()):
        return math.nan
    z = (truth.double() - mean)[some] / std[some]
    return math.sqrt(float(z.square().mean()) / ((1 + 1 / k) * (k - 1) / (k - 3)))
