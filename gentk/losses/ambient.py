"""Denoising error of measurements that were corrupted further (Daras et al. 2023, arXiv:2305.19256; noise: 2404.10177).

    y = A x0 + sigma n where something is seen      A a mask, n standard normal
    x_t = y + sqrt(t^2 - sigma^2) eps               a sample at level t > sigma, of what is seen
    K, a mask below A                               what the network is shown: K x_t and K

The network D(K x_t, K, t) is judged on all that A sees, also where K hid it from the network: K says nothing of which
hidden pixels A saw, so D must be right everywhere. Where K shows x_t, part of the noise of y is in x_t too; its
expectation given x_t is (sigma / t)^2 (x_t - E[x0 | K x_t]), which the prediction of y takes into account.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gentk.processes import rows

Shown = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(K x_t (B, ...), K (B, ...), t (B,)) -> D (B, ...)."""


def further(
    denoise: Shown,
    y: Tensor,
    seen: Tensor,
    kept: Tensor,
    s: Tensor,
    eps: Tensor,
    sigma: float | Tensor,
    sigma_data: float,
) -> Tensor:
    """lambda(t) mean|A (Y - y)|^2, Y = K ((1 - a) D + a x_t) + (1 - K) D, a = (sigma / t)^2: (B, ...) -> (B,).

    y is 0 where nothing is `seen` (A); `kept` (K <= A) of 0 and 1, drawn without a look at y; s (B,) the added noise,
    t^2 = sigma^2 + s^2; sigma one number or each row's own (B,): where it is 0 and all is shown this is EDM's error.
    lambda as EDM's. Its minimiser is D = E[x0 | K x_t, K] in every pixel that A may see.
    """
    level, noise = (
        each.reshape(-1, *[1] * (y.dim() - 1)).to(y) for each in (s, torch.as_tensor(sigma, dtype=torch.float64))
    )
    t = (level.square() + noise.square()).sqrt()
    x = kept * (y + level * eps)
    x0 = denoise(x, kept, t.flatten())
    a = (noise / t).square()
    guess = kept * ((1 - a) * x0 + a * x) + (1 - kept) * x0
    weight = (1 / t.square() + 1 / sigma_data**2).flatten()
    return weight * (seen * (guess - y)).square().flatten(1).mean(1)


def hidden(seen: Tensor, share: float, gen: torch.Generator) -> Tensor:
    """A mask K below A = `seen` (B, C, ...): of each image's seen pixels each is hidden with probability `share`."""
    keep = rows.rand(seen[:, :1].shape, gen, device=gen.device) >= share
    return seen * keep.to(seen)
