"""Residual multilayer perceptron for points: the denoiser and classifier of two-dimensional data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.nets.unet import frequencies


class Mlp(nn.Module):
    """`net(x, c_noise, cond)`: (B, D), (B,), (B,) int64 -> (B, D).

    `classes` > 0 adds an embedding whose last row stands for "no label"; `cond=None` means that row for every sample.
    """

    def __init__(self, *, dim: int, classes: int, width: int, blocks: int) -> None:
        super().__init__()
        self.width, self.classes = width, classes
        self.time = nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        if self.label is not None:
            nn.init.zeros_(self.label.weight)
        self.inp = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.out = nn.Linear(width, dim)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, D), c_noise (B,), cond (B,) int64 or None -> (B, D), the raw prediction."""
        emb = self.time(frequencies(c_noise, self.width).to(x.dtype))
        if self.label is not None:
            null = torch.full_like(c_noise, self.classes, dtype=torch.long)
            emb = emb + self.label(null if cond is None else cond)
        h = self.inp(x)
        for block in self.blocks:
            h = h + block(h + emb)
        out: Tensor = self.out(F.silu(h))
        return out
