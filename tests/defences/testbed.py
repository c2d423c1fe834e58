"""The testbed of the reference tables: digits in [-1, 1], the exact denoiser of a kernel density on them, a small CNN.

1400 digits are the density and train the victim, the other 397 are defended and attacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.attacks.victim import Tape
from gentk.defences.noise import Noise

BANDWIDTH = 0.27  # the best held-out likelihood


@dataclass(frozen=True, eq=False)
class Density:
    """A mixture of N(mu_i, h^2) at `centres` (N, ...): its exact denoiser, in the dtype of what it is asked."""

    centres: Tensor
    h: float = BANDWIDTH

    def __call__(self, z: Tensor, t: float | Tensor) -> Tensor:
        """E[z_0 | z], t one level or one per row, by D = (h^2 z + t^2 sum_i w_i mu_i) / (h^2 + t^2)."""
        u, mu = z.flatten(1), self.centres.flatten(1).to(z)
        t2 = torch.as_tensor(t, dtype=z.dtype, device=z.device).reshape(-1, 1) ** 2
        square = (u * u).sum(1, keepdim=True) - 2 * u @ mu.T + (mu * mu).sum(1)
        w = torch.softmax(-square / (2 * (self.h**2 + t2)), 1)
        return ((self.h**2 * u + t2 * (w @ mu)) / (self.h**2 + t2)).reshape(z.shape)


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images in [0, 1] (1400, 1, 8, 8) with labels, and the other 397, in a shuffled order."""
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(bunch.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1400]], y[order[:1400]], x[order[1400:]], y[order[1400:]]


@cache
def density() -> Density:
    """The kernel density of the first 1400 digits, in [-1, 1]."""
    return Density(2 * digits()[0] - 1)


@cache
def victim() -> nn.Module:
    """The CNN that is attacked: images in [0, 1] -> logits, trained for some seconds on the same 1400."""
    x, y, *_ = digits()
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 16, 10),
    )  # fmt: skip
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    gen = torch.Generator().manual_seed(1)
    for _ in range(20):
        for part in torch.randperm(len(x), generator=gen).split(100):
            adam.zero_grad()
            F.cross_entropy(net(x[part]), y[part]).backward()  # type: ignore[no-untyped-call]
            adam.step()
    adam.zero_grad()
    return net.eval().requires_grad_(False)


def noise(n: int, seed: int = 0, draw: int = 0) -> Noise:
    """The noise of images 0 to n."""
    return Noise(Tape.of(torch.arange(n), seed, draw))
