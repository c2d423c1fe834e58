"""The U-Net of Song et al. 2021 as Karras et al. 2022 settled it: DDPM++ and NCSN++.

    setting      DDPM++ (`...-vp`)   NCSN++ (`...-ve`)
    embedding    positional          fourier
    encoder      standard            residual
    taps         (1, 1)              (1, 3, 3, 1)

arXiv:2011.13456, appendix H, and arXiv:2206.00364, appendix F; written from the papers. The names of the tensors are
those of the published EDM networks without their leading `model.`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.nets.blocks import Block, Form, Place, Resampling, climb, groups, one_hot, pyramid, sinusoids

FORM = Form(adaptive=False, eps=1e-6, residual=math.sqrt(0.5), head_width=None, projected=True)

_FOURIER_SCALE = 16.0  # standard deviation of the random frequencies


class SongUNet(nn.Module):
    """`net(x, c_noise, cond)`: (B, C, S, S), (B,), (B,) int64 or None -> (B, C, S, S).

    `cond=None` and the label `classes` are the label vector of zeros. `augment` > 0 adds the weights that take so many
    numbers about an augmentation; without those numbers they do nothing, and learn nothing. Raises ValueError for a
    side that cannot be halved so often and for channels that norms cannot group.
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
        embedding: Literal["positional", "fourier"],
        encoder: Literal["standard", "residual"],
        taps: tuple[float, ...],
        augment: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.width, self.classes, self.embedding = width, classes, embedding
        noise, emb = width * (2 if embedding == "fourier" else 1), 4 * width
        if embedding == "fourier":
            self.map_noise = nn.Module()
            self.map_noise.register_buffer("freqs", torch.randn(width) * _FOURIER_SCALE)
        self.map_label = nn.Linear(classes, noise) if classes else None
        self.map_augment = nn.Linear(augment, noise, bias=False) if augment else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, emb), nn.Linear(emb, emb)

        def make(cin: int, cout: int, side: int, place: Place, resampling: Resampling | None) -> Block:
            attends = place == "middle" or (side in attention and place in ("encoder", "last"))
            return Block(cin, cout, emb, FORM, attention=attends, dropout=dropout, resampling=resampling, taps=taps)

        self.enc, self.dec, c = pyramid(
            size=size,
            channels=channels,
            first=width,
            widths=[m * width for m in multipliers],
            blocks=blocks,
            make=make,
            aux=taps if encoder == "residual" else None,
        )
        self.dec[f"{size}x{size}_aux_norm"] = nn.GroupNorm(groups(c), c, FORM.eps)
        self.dec[f"{size}x{size}_aux_conv"] = nn.Conv2d(c, channels, 3, padding=1)
        self._out = f"{size}x{size}_aux_norm", f"{size}x{size}_aux_conv"
        self._initialise()

    def _initialise(self) -> None:
        """Weights of variance 2 / (fan-in + fan-out), no biases; the ends of residual paths, and the output, at 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.zeros_(module.conv1.weight)
                if module.heads:
                    nn.init.zeros_(module.proj.weight)
        nn.init.zeros_(self.dec[self._out[1]].get_parameter("weight"))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """x (B, C, S, S), c_noise (B,), cond (B,) int64 or None, augment (B, A) or None -> (B, C, S, S)."""
        if self.embedding == "fourier":
            phase = c_noise[:, None] * (2 * math.pi * self.map_noise.get_buffer("freqs").to(c_noise))
            waves = (phase.sin(), phase.cos())
        else:
            waves = sinusoids(c_noise, self.width, last=True)
        emb = torch.cat(waves, 1).to(x.dtype)
        if self.map_label is not None:
            emb = emb + self.map_label(one_hot(cond, self.classes, emb) * math.sqrt(self.classes))
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        h = climb(self.enc, self.dec, x, emb, FORM.residual)
        norm, conv = (self.dec[name] for name in self._out)
        out: Tensor = conv(F.silu(norm(h)))
        return out
