"""Class-conditional U-Net for images of 8 to 64 pixels.

Residual blocks with adaptive group normalisation (scale and shift from the noise level and the class), self-attention
at chosen resolutions, average-pool down and nearest-neighbour up. After Ho et al. 2020 (arXiv:2006.11239, appendix B)
and Dhariwal & Nichol 2021 (arXiv:2105.05233, section 3); written from the papers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def frequencies(c_noise: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of the noise label: (B,) -> (B, width), `width` even.

    The label is ln(sigma)/4 in EDM's convention, of order one, so frequencies run geometrically from 1 to 100 rather
    than down from 1 as for integer time steps.
    """
    f = torch.exp(torch.linspace(0.0, math.log(100.0), width // 2, device=c_noise.device, dtype=c_noise.dtype))
    phase = c_noise[:, None] * f
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def _groups(channels: int) -> int:
    return math.gcd(channels, min(32, max(1, channels // 8)))


class Block(nn.Module):
    """Residual block, optionally followed by self-attention: (B, Cin, H, W), (B, E) -> (B, Cout, H, W)."""

    def __init__(self, cin: int, cout: int, emb: int, *, dropout: float, attention: bool) -> None:
        super().__init__()
        self.norm0 = nn.GroupNorm(_groups(cin), cin)
        self.conv0 = nn.Conv2d(cin, cout, 3, padding=1)
        self.affine = nn.Linear(emb, 2 * cout)
        self.norm1 = nn.GroupNorm(_groups(cout), cout)
        self.drop = nn.Dropout(dropout)
        self.conv1 = nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        self.attend = Attention(cout) if attention else nn.Identity()
        nn.init.zeros_(self.conv1.weight)  # each block starts as its skip path, so depth costs nothing at the start

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Features x (B, Cin, H, W) and embedding emb (B, E) -> (B, Cout, H, W)."""
        h = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(torch.addcmul(shift, self.norm1(h), 1 + scale))
        h = self.conv1(self.drop(h))
        out: Tensor = self.attend((self.skip(x) + h) * math.sqrt(0.5))  # sqrt(1/2) keeps the variance with depth
        return out


class Attention(nn.Module):
    """Residual self-attention over the pixels, heads of 32 channels or fewer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = next(h for h in range(-(-channels // 32), channels + 1) if channels % h == 0)
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) plus what its pixels attend to: (B, C, H, W)."""
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).transpose(3, 4).unbind(1)
        a = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.proj(a.transpose(2, 3).reshape(b, c, h, w))
        return out


class UNet(nn.Module):
    """`net(x, c_noise, cond)`: (B, C, S, S), (B,), (B,) int64 -> (B, C, S, S).

    `classes` > 0 adds an embedding with one more row than classes: the last row stands for "no label" and is what
    label dropout trains, so that classifier-free guidance works. `cond=None` means "no label" for every sample.
    """

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        classes: int,
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        dropout: float,
    ) -> None:
        super().__init__()
        if size % 2 ** (len(multipliers) - 1):
            raise ValueError(f"a side of {size} pixels cannot be halved {len(multipliers) - 1} times")
        emb = 4 * width
        self.width, self.classes = width, classes
        self.time = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label = nn.Embedding(classes + 1, emb) if classes else None
        if self.label is not None:
            nn.init.zeros_(self.label.weight)
        self.inp = nn.Conv2d(channels, width, 3, padding=1)

        def block(cin: int, cout: int, side: int) -> Block:
            return Block(cin, cout, emb, dropout=dropout, attention=side in attention)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        c, side, skips = width, size, [width]
        for level, m in enumerate(multipliers):
            if level:
                side //= 2
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(block(c, m * width, side))
                c = m * width
                skips.append(c)
            self.down.append(stage)
        self.mid = block(c, c, side)
        for level, m in reversed(list(enumerate(multipliers))):
            stage = nn.ModuleList()
            for _ in range(blocks + (level == 0)):
                stage.append(block(c + skips.pop(), m * width, side))
                c = m * width
            self.up.append(stage)
            if level:
                side *= 2
        self.norm = nn.GroupNorm(_groups(c), c)
        self.out = nn.Conv2d(c, channels, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, C, S, S), c_noise (B,), cond (B,) int64 or None -> (B, C, S, S), the raw prediction."""
        emb = self.time(frequencies(c_noise, self.width).to(x.dtype))
        if self.label is not None:
            null = torch.full_like(c_noise, self.classes, dtype=torch.long)
            emb = emb + self.label(null if cond is None else cond)
        emb = F.silu(emb)
        h = self.inp(x)
        hs = [h]
        for level, stage in enumerate(self.down):
            if level:
                h = F.avg_pool2d(h, 2)
            for block in stage.children():
                h = block(h, emb)
                hs.append(h)
        h = self.mid(h, emb)
        for level, stage in enumerate(self.up):
            if level:
                h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            for block in stage.children():
                h = block(torch.cat([h, hs.pop()], dim=1), emb)
        out: Tensor = self.out(F.silu(self.norm(h)))
        return out
