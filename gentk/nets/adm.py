"""ADM, the U-Net of Dhariwal & Nichol 2021 (arXiv:2105.05233, section 3), as guided-diffusion and EDM published it.

Written from the paper. The names of the tensors are those of EDM's ImageNet-64 network without its leading `model.`;
`keymaps.guided_diffusion` brings guided-diffusion's own to them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.nets.blocks import Block, Form, Place, Resampling, climb, groups, one_hot, pyramid, sinusoids

_EPS = 1e-5


class Adm(nn.Module):
    """`net(x, c_noise, cond)`: (B, C, S, S), (B,), (B,) int64 or None -> (B, C, S, S).

    `cond=None` and the label `classes` add nothing to the embedding. With `learned_sigma` the network makes 2 C
    channels, of which the last C (an interpolation of log variances, arXiv:2102.09672) are dropped. `augment` as in
    `SongUNet`. Raises ValueError for a side that cannot be halved so often and for channels that norms cannot group or
    heads cannot part.
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
        head_width: int,
        augment: int,
        learned_sigma: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.width, self.classes, self.channels = width, classes, channels
        emb = 4 * width
        form = Form(adaptive=True, eps=_EPS, residual=1.0, head_width=head_width, projected=False)
        self.map_augment = nn.Linear(augment, width, bias=False) if augment else None
        self.map_layer0, self.map_layer1 = nn.Linear(width, emb), nn.Linear(emb, emb)
        self.map_label = nn.Linear(classes, emb, bias=False) if classes else None
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)  # one column of unit variance is added, not a mean of many

        def make(cin: int, cout: int, side: int, place: Place, resampling: Resampling | None) -> Block:
            attends = place == "middle" or (side in attention and place != "between")
            block = Block(cin, cout, emb, form, attention=attends, dropout=dropout, resampling=resampling)
            nn.init.zeros_(block.conv1.weight)  # each block starts as its skip path
            if block.heads:
                nn.init.zeros_(block.proj.weight)
            return block

        widths = [m * width for m in multipliers]
        self.enc, self.dec, c = pyramid(
            size=size, channels=channels, first=widths[0], widths=widths, blocks=blocks, make=make, aux=None
        )
        self.out_norm = nn.GroupNorm(groups(c), c, _EPS)
        self.out_conv = nn.Conv2d(c, channels * (2 if learned_sigma else 1), 3, padding=1)
        nn.init.zeros_(self.out_conv.weight)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """x (B, C, S, S), c_noise (B,), cond (B,) int64 or None, augment (B, A) or None -> (B, C, S, S)."""
        sin, cos = sinusoids(c_noise, self.width, last=False)
        emb = torch.cat([cos, sin], 1).to(x.dtype)
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(one_hot(cond, self.classes, emb))
        h = climb(self.enc, self.dec, x, F.silu(emb), 1.0)
        out: Tensor = self.out_conv(F.silu(self.out_norm(h)))
        return out[:, : self.channels]
