"""The variational objective of FlowDiff (arXiv:2407.11162), term by term: a bound of -log p(y), but for constants.

    L = E_z [ |y - H G|^2 / (2 sigma^2)  +  U(G)  -  log|det dG/dz| ],      G = G(z; y)

data, prior and entropy, each summed over pixels, with weight 1 each: they are one likelihood. Its gradient in the prior
is denoising score matching on the flow's draws; in the flow it goes through the denoiser into G.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gentk.processes import rows


def misfit(y: Tensor, hx: Tensor, sigma: float) -> Tensor:
    """|y - H x|^2 / (2 sigma^2): (B, ...) twice -> (B,)."""
    return (y - hx).square().flatten(1).sum(1) / (2 * sigma**2)


def energy(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    s: Tensor,
    eps: Tensor,
    reach: float,
    *,
    through: bool = True,
) -> Tensor:
    """One draw of U(x) = int |D(x + s eps, s) - x|^2 / s^2 d ln s >= -log p(x) + const: (B, ...) -> (B,).

    `s` (B,) is drawn evenly in ln s from a range of length `reach` in ln s, eps standard normal. With the exact
    denoiser it is -log p at the range's lower end, less that at its upper. `through` False drops the denoiser's
    Jacobian from the gradient (score distillation), which is biased here: the value is then not U's.
    """
    level = s.reshape(-1, *[1] * (x.dim() - 1)).to(x)
    x0 = denoise(x + level * eps, s)
    if through:
        return reach * ((x0 - x) / level).square().flatten(1).sum(1)
    return reach * (2 * (x - x0).detach() * x / level**2).flatten(1).sum(1)


def probes(x: Tensor, repeats: int, low: float, high: float, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Levels s (B,) float64 and noise eps (B, ...) for `energy`, of which `repeats` rows in a row share one draw x.

    An even number of them makes pairs of one level and opposite noise: on Gaussian data all that eps does to the
    gradient is odd in it and leaves with the pair. An odd number has levels and noise of its own in every row.
    """
    n, pair = len(x), 2 if repeats % 2 == 0 else 1
    s = spread_levels(n // pair, low, high, gen, x.device)
    eps = rows.randn((n // pair, *x.shape[1:]), gen, device=x.device, dtype=x.dtype)
    if pair == 1:
        return s, eps
    return s.repeat_interleave(2), torch.stack([eps, -eps], 1).flatten(0, 1)


def gaussian_energy(x: Tensor, mean: Tensor, whiten: Tensor) -> Tensor:
    """-log N(x; mean, C) but for constants, the prior of the warm-up: (B, ...) -> (B,).

    `whiten` is of one sample's shape, each number's 1 / deviation, or the matrix (D, D) with C^-1 = whiten whiten^T.
    """
    off = x - mean
    white = off * whiten if whiten.shape == mean.shape else off.flatten(1) @ whiten
    return white.square().flatten(1).sum(1) / 2


def spread_levels(n: int, low: float, high: float, gen: torch.Generator, where: torch.device) -> Tensor:
    """n levels even in ln s from low to high, one in each n-th of the range, in random order: (n,) float64."""
    n = n * rows.size(gen)  # over all processes that share the batch
    at = (torch.arange(n, device=where) + torch.rand(n, generator=rows.common(gen), device=where)) / n
    at = rows.mine(at[torch.randperm(n, generator=rows.common(gen), device=where)].double(), gen)
    return low * (at * math.log(high / low)).exp()
