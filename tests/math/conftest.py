"""What the mathematical tests share: a Gaussian mixture whose noised density, score and denoiser are closed forms."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gentk.processes.process import Process, expand
from gentk.processes.schedules import VE, VP, Cosine, RectifiedFlow

PROCESSES: tuple[Process, ...] = (VE(), VP(), Cosine(), RectifiedFlow())


@dataclass(frozen=True)
class Mixture:
    """sum_k w_k N(m_k, v_k I) in float64: w, v (K,), m (K, d)."""

    w: Tensor
    m: Tensor
    v: Tensor

    def _components(self, process: Process, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        alpha = expand(process.alpha(t), x)  # (B, 1)
        scale = alpha**2 * self.v + expand(process.sigma(t), x) ** 2  # (B, K): variance of component k at t
        offset = x[:, None] - alpha[..., None] * self.m  # (B, K, d)
        log = self.w.log() - 0.5 * x.shape[1] * (2 * torch.pi * scale).log() - 0.5 * offset.square().sum(2) / scale
        return alpha, scale, offset, log

    def log_prob(self, process: Process, x: Tensor, t: Tensor) -> Tensor:
        """ln p_t(x): x (B, d), t () or (B,) -> (B,)."""
        return self._components(process, x, t)[3].logsumexp(1)

    def denoise(self, process: Process, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t = x]: (B, d)."""
        alpha, scale, offset, log = self._components(process, x, t)
        each = self.m + (alpha * self.v / scale)[..., None] * offset
        return (log.softmax(1)[..., None] * each).sum(1)

    def sample(self, n: int, gen: torch.Generator) -> Tensor:
        """n exact draws of x0: (n, d)."""
        k = torch.multinomial(self.w, n, replacement=True, generator=gen)
        noise = torch.randn(n, self.m.shape[1], generator=gen, dtype=torch.float64)
        return self.m[k] + self.v[k].sqrt()[:, None] * noise


@pytest.fixture
def mixture() -> Mixture:
    w, v = torch.tensor([0.3, 0.5, 0.2]).double(), torch.tensor([0.4, 0.25, 0.16]).double()
    return Mixture(w, torch.tensor([[1.5, 0.2], [-1.0, 0.8], [0.3, -1.4]]).double(), v)


@pytest.fixture(params=PROCESSES, ids=lambda p: p.name)
def process(request: pytest.FixtureRequest) -> Process:
    return request.param


@pytest.fixture
def gen() -> torch.Generator:
    return torch.Generator().manual_seed(0)
