"""Weights and inputs by a formula, so that both sides of a comparison can make them: the reference's, outside, too."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

KEPT = ("resample_filter", "sigmas")


def numbers(name: str, shape: Sequence[int]) -> Tensor:
    """Pseudo-random float32 numbers in [-0.5, 0.5) that depend on the name alone."""
    count = torch.Size(shape).numel()
    phase = torch.arange(count, dtype=torch.float64) * 12.9898 + zlib.crc32(name.encode()) % 10_007
    value = (phase.sin() * 43758.5453) % 1 - 0.5
    return value.float().reshape(tuple(shape))


def weight(name: str, shape: Sequence[int]) -> Tensor:
    """A tensor of a state dict: unit gain for matrices, near 1 for the scale of norms, broad for random frequencies."""
    value, last = numbers(name, shape), name.rpartition(".")[2]
    if last == "freqs" or name.endswith("all_modules.0.W"):
        return 4 * value
    if len(shape) >= 2:
        fan_in = torch.Size(shape[1:]).numel() if last != "W" else shape[0]
        return value * (12 / fan_in) ** 0.5
    return 1 + 0.6 * value if last == "weight" else 0.6 * value


def fill(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with every tensor replaced but the constant ones."""
    return {k: v if k.endswith(KEPT) else weight(k, v.shape) for k, v in state.items()}


def sample(out: Tensor, n: int = 48) -> list[float]:
    """n values of the output, spread over it, with six significant digits more than float32's rounding needs."""
    flat = out.detach().double().flatten()
    return [round(v, 8) for v in flat[:: max(1, len(flat) // n)][:n].tolist()]
