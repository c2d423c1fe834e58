"""A small convolutional noise predictor for images of one size: the network of Yichizz/hot_vs_cold_diffusion (MIT).

The names of the tensors are those of its published MNIST weights (`mnist_ddpm_cnn`).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

_WAVES = 16


class NoiseCnn(nn.Module):
    """`net(x, c_noise, cond)`: (B, C, S, S), (B,) in [0, 1], None -> (B, C, S, S); labels are not read.

    Convolutions 7x7, each with a norm over all of its image and GELU; after the first a vector made of the time is
    added to each pixel's channels; a convolution 3x3 at the end.
    """

    frequencies: Tensor

    def __init__(self, *, size: int, channels: int, widths: tuple[int, ...], embedding: int) -> None:
        super().__init__()
        layers = [Layer(i, o, size) for i, o in pairwise((channels, *widths))]
        self.blocks = nn.ModuleList([*layers, nn.Conv2d(widths[-1], channels, 3, padding=1)])
        self.register_buffer("frequencies", torch.tensor([0.0, *(2 * math.pi * 1.5**k for k in range(_WAVES - 1))]))
        sides = (2 * _WAVES, embedding, embedding, embedding, widths[0])
        linear = (nn.Linear(i, o) for i, o in pairwise(sides))
        self.time_embed = nn.Sequential(*[m for layer in linear for m in (layer, nn.GELU())][:-1])

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, C, S, S), c_noise (B,) -> (B, C, S, S)."""
        phase = c_noise[:, None] * self.frequencies.to(c_noise)
        emb = self.time_embed(torch.cat([phase.sin(), phase.cos() - 1], 1).to(x.dtype))
        first, *rest = self.blocks.children()
        h: Tensor = first(x) + emb[:, :, None, None]
        for block in rest:
            h = block(h)
        return h


class Layer(nn.Module):
    """Convolution 7x7, norm over channels and pixels, GELU: (B, Cin, S, S) -> (B, Cout, S, S)."""

    def __init__(self, cin: int, cout: int, size: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(cin, cout, 7, padding=3), nn.LayerNorm((cout, size, size)), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """x (B, Cin, S, S) -> (B, Cout, S, S)."""
        out: Tensor = self.net(x)
        return out
