"""The score network of time series: a recurrent state of the rows so far, and a residual perceptron of the next one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gentk.nets.unet import frequencies


class CausalScore(nn.Module):
    """`net(x, c_noise, cond)`: (B, D), (B,), state (B, H) -> (B, D); states come from `encode` and see no later row."""

    def __init__(self, *, dim: int, features: int, hidden: int, width: int, blocks: int) -> None:
        super().__init__()
        self.width = width
        self.past = nn.GRU(features, hidden, batch_first=True)
        self.state = nn.Linear(hidden, width)
        self.time = nn.Linear(width, width)
        self.inp = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.out = nn.Linear(width, dim)
        nn.init.zeros_(self.out.weight)

    def encode(self, rows: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features of rows (B, T, F) -> the state after each of them (B, T, H), and what goes on from the last."""
        states, last = self.past(rows, state)
        return states, last

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """The raw prediction of a noised row x (B, D); without `cond` for the state 0."""
        emb = self.time(frequencies(c_noise, self.width).to(x.dtype))
        if cond is not None:
            emb = emb + self.state(cond)
        h = self.inp(x)
        for block in self.blocks:
            h = h + block(h + emb)
        out: Tensor = self.out(F.silu(h))
        return out
