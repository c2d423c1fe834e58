"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239, appendix B) as diffusers publishes it: google/ddpm-cifar10-32.

Written from the paper. The names of the tensors are those of diffusers' `UNet2DModel`, whose blocks are a part of the
architecture here: attention at the sides of `attention` and in the middle, asymmetric padding where the side is halved.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.nets.blocks import attend, sinusoids

_EPS = 1e-6


class DdpmUNet(nn.Module):
    """`net(x, c_noise, cond)`: (B, C, S, S), (B,), None -> (B, C, S, S); `c_noise` is the timestep; no labels.

    Raises ValueError for a side that cannot be halved so often and for channels that norms or heads cannot part.
    """

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        head_width: int | None,
        groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if size % 2 ** (len(multipliers) - 1):
            raise ValueError(f"a side of {size} pixels cannot be halved {len(multipliers) - 1} times")
        self.width = width
        emb, widths = 4 * width, [m * width for m in multipliers]
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.time_embedding = nn.ModuleDict({"linear_1": nn.Linear(width, emb), "linear_2": nn.Linear(emb, emb)})

        def resnet(cin: int, cout: int) -> Resnet:
            return Resnet(cin, cout, emb, groups=groups, dropout=dropout)

        def attending(c: int, side: int) -> Attention | None:
            return Attention(c, groups=groups, head_width=head_width) if side in attention else None

        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        c, skips, last = widths[0], [widths[0]], len(widths) - 1
        for level, w in enumerate(widths):
            stage = Stage()
            for _ in range(blocks):
                stage.add(resnet(c, w), attending(w, size >> level))
                c = w
                skips.append(c)
            if level < last:
                stage.downsamplers = nn.ModuleList([Downsample(c)])
                skips.append(c)
            self.down_blocks.append(stage)
        self.mid_block = Stage()
        self.mid_block.add(resnet(c, c), Attention(c, groups=groups, head_width=head_width))
        self.mid_block.add(resnet(c, c), None)
        for level, w in reversed(list(enumerate(widths))):
            stage = Stage()
            for _ in range(blocks + 1):
                stage.add(resnet(c + skips.pop(), w), attending(w, size >> level))
                c = w
            if level:
                stage.upsamplers = nn.ModuleList([Upsample(c)])
            self.up_blocks.append(stage)
        self.conv_norm_out = nn.GroupNorm(groups, c, _EPS)
        self.conv_out = nn.Conv2d(c, channels, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, C, S, S), c_noise (B,) -> (B, C, S, S)."""
        emb = torch.cat(sinusoids(c_noise, self.width, last=True), 1).to(x.dtype)
        first, second = self.time_embedding.values()
        emb = F.silu(second(F.silu(first(emb))))
        h = self.conv_in(x)
        skips = [h]
        for stage in self.down_blocks.children():
            assert isinstance(stage, Stage)
            for resnet, attention in stage.pairs():
                h = attention(resnet(h, emb))
                skips.append(h)
            for layer in stage.downsamplers or ():
                h = layer(h)
                skips.append(h)
        for resnet, attention in self.mid_block.pairs():
            h = attention(resnet(h, emb))
        for stage in self.up_blocks.children():
            assert isinstance(stage, Stage)
            for resnet, attention in stage.pairs():
                h = attention(resnet(torch.cat([h, skips.pop()], 1), emb))
            for layer in stage.upsamplers or ():
                h = layer(h)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(h)))
        return out


class Stage(nn.Module):
    """The layers of one level by their published names: residual blocks, an attention after each or after none."""

    def __init__(self) -> None:
        super().__init__()
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList()
        self.downsamplers: nn.ModuleList | None = None
        self.upsamplers: nn.ModuleList | None = None

    def add(self, resnet: Resnet, attention: Attention | None) -> None:
        """Appends a residual block and what follows it."""
        self.resnets.append(resnet)
        if attention is not None:
            self.attentions.append(attention)

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each residual block with the attention that follows it, or with nothing."""
        after = [*self.attentions.children(), *(nn.Identity() for _ in range(len(self.resnets) - len(self.attentions)))]
        return list(zip(self.resnets.children(), after, strict=True))


class Resnet(nn.Module):
    """Residual block, the embedding added between its halves: (B, Cin, S, S), (B, E) -> (B, Cout, S, S)."""

    def __init__(self, cin: int, cout: int, emb: int, *, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, cin, _EPS)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb, cout)
        self.norm2 = nn.GroupNorm(groups, cout, _EPS)
        self.drop = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Features x (B, Cin, S, S), embedding emb (B, E) after its SiLU -> (B, Cout, S, S)."""
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(emb)[:, :, None, None]
        h = self.conv2(self.drop(F.silu(self.norm2(h))))
        out: Tensor = h + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class Attention(nn.Module):
    """Residual self-attention over the pixels: (B, C, S, S) -> (B, C, S, S)."""

    def __init__(self, channels: int, *, groups: int, head_width: int | None) -> None:
        super().__init__()
        self.heads, rest = divmod(channels, head_width or channels)
        if rest:
            raise ValueError(f"{channels} channels do not part into heads of {head_width}")
        self.group_norm = nn.GroupNorm(groups, channels, _EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, S, S) plus what its pixels attend to."""
        b, c, h, w = x.shape
        pixels = self.group_norm(x).flatten(2).transpose(1, 2)
        parts = (layer(pixels) for layer in (self.to_q, self.to_k, self.to_v))
        q, k, v = (part.transpose(1, 2).reshape(b, self.heads, c // self.heads, h * w) for part in parts)
        seen = self.to_out[0](attend(q, k, v).reshape(b, c, h * w).transpose(1, 2))
        out: Tensor = x + seen.transpose(1, 2).reshape(b, c, h, w)
        return out


class Downsample(nn.Module):
    """A convolution of stride 2 that looks right and down only: (B, C, S, S) -> (B, C, S / 2, S / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, S, S) -> (B, C, S / 2, S / 2)."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Each pixel four times, then a convolution: (B, C, S, S) -> (B, C, 2 S, 2 S)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, S, S) -> (B, C, 2 S, 2 S)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out
