"""What the published U-Nets are made of: blocks with resampling and attention, the pyramid, sinusoidal labels.

Song et al. 2021 (arXiv:2011.13456, appendix H: DDPM++ and NCSN++) and Dhariwal & Nichol 2021 (arXiv:2105.05233,
section 3: ADM) in the naming of Karras et al. 2022 (arXiv:2206.00364, appendix F), so that published weights load.
Written from the papers and from facts about the published files: names, shapes, orders of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Resampling = Literal["down", "up"]
Place = Literal["encoder", "decoder", "last", "middle", "between"]
"""Where a block is: within a level, the decoder's last of a level, in0, or in1 and what changes the resolution."""


@dataclass(frozen=True)
class Form:
    """In what the blocks of the two families differ.

    `adaptive`: the embedding gives scale and shift of the second norm, else it is added before it; `residual`: factor
    of each sum with a skip path; `head_width`: channels of an attention head, None for one head; `projected`: whether a
    skip path that changes the resolution alone has weights.
    """

    adaptive: bool
    eps: float
    residual: float
    head_width: int | None
    projected: bool


def sinusoids(label: Tensor, width: int, *, last: bool) -> tuple[Tensor, Tensor]:
    """sin and cos of label * 10000^(-k / K), k < width / 2: (B,) -> two of (B, width / 2).

    K = width / 2, or one less where the lowest frequency is exactly 1 / 10000 (`last`).
    """
    half = width // 2
    k = torch.arange(half, device=label.device, dtype=label.dtype) / (half - last)
    phase = label[:, None] * 10000.0**-k
    return phase.sin(), phase.cos()


def one_hot(cond: Tensor | None, classes: int, like: Tensor) -> Tensor:
    """Labels (B,) int64 -> (B, classes), in the dtype of `like` (B, ...); zeros for None and for the label `classes`.

    gentk's own networks call the row after the last class "no label"; here it has no weights.
    """
    if cond is None:
        return like.new_zeros(like.shape[0], classes)
    return F.one_hot(cond, classes + 1)[:, :classes].to(like)


def groups(channels: int) -> int:
    """Groups of a norm: 32, or as many as leave each 4 channels."""
    return max(1, min(32, channels // 4))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q^T k / sqrt(C)) v over the pixels: three of (B, heads, C, N) -> (B, heads, C, N)."""
    q, k, v = (part.transpose(2, 3).contiguous() for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(2, 3)


def resampling_filter(taps: Sequence[float]) -> Tensor:
    """The separable filter f f^T / (sum f)^2 of `taps`: (1, 1, L, L), of sum 1."""
    f = torch.tensor(taps, dtype=torch.float32)
    return (f[:, None] * f / f.sum() ** 2)[None, None]


def _filtered(x: Tensor, kernel: Tensor, resampling: Resampling) -> Tensor:
    """Each channel by the filter to half or twice the side; [1, 1] is the mean of 2 x 2 pixels or their repetition."""
    c, padding = x.shape[1], (kernel.shape[-1] - 1) // 2
    each = kernel.to(x.dtype).repeat(c, 1, 1, 1)
    if resampling == "down":
        return F.conv2d(x, each, stride=2, padding=padding, groups=c)
    return F.conv_transpose2d(x, 4 * each, stride=2, padding=padding, groups=c)


class Resample(nn.Module):
    """Half or twice the side, without weights: (B, C, S, S) -> (B, C, S / 2, S / 2) or (B, C, 2 S, 2 S)."""

    resample_filter: Tensor

    def __init__(self, resampling: Resampling, taps: Sequence[float]) -> None:
        super().__init__()
        self.resampling: Resampling = resampling
        self.taps = tuple(taps)
        self.register_buffer("resample_filter", resampling_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, S, S) -> (B, C, S / 2, S / 2) or (B, C, 2 S, 2 S)."""
        return _filtered(x, self.resample_filter, self.resampling)


class ResampleConv(nn.Conv2d):
    """Half or twice the side, then a convolution: (B, Cin, S, S) -> (B, Cout, S / 2, S / 2) or (B, Cout, 2 S, 2 S)."""

    resample_filter: Tensor

    def __init__(self, cin: int, cout: int, kernel: int, resampling: Resampling, taps: Sequence[float]) -> None:
        super().__init__(cin, cout, kernel, padding=kernel // 2)
        self.resampling: Resampling = resampling
        self.taps = tuple(taps)
        self.register_buffer("resample_filter", resampling_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, Cin, S, S) -> (B, Cout, S / 2, S / 2) or (B, Cout, 2 S, 2 S)."""
        return super().forward(_filtered(x, self.resample_filter, self.resampling))


class AuxConv(nn.Conv2d):
    """A 3x3 convolution, then half the side, then the bias: NCSN++'s path of the input beside the encoder.

    The convolution is padded for the filter as well, which itself is not: (B, Cin, S, S) -> (B, Cout, S / 2, S / 2).
    """

    resample_filter: Tensor

    def __init__(self, cin: int, cout: int, taps: Sequence[float]) -> None:
        super().__init__(cin, cout, 3)
        self.taps = tuple(taps)
        self.register_buffer("resample_filter", resampling_filter(taps))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, Cin, S, S) -> (B, Cout, S / 2, S / 2)."""
        x = F.conv2d(x, self.weight, padding=1 + (self.resample_filter.shape[-1] - 1) // 2)
        each = self.resample_filter.to(x.dtype).repeat(x.shape[1], 1, 1, 1)
        return F.conv2d(x, each, self.bias, stride=2, groups=x.shape[1])


class Block(nn.Module):
    """Residual block, with attention after it where asked: (B, Cin, S, S), (B, E) -> (B, Cout, S', S').

    Raises ValueError where the channels do not part into the form's heads, or into the norm's groups.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        emb: int,
        form: Form,
        *,
        attention: bool,
        dropout: float,
        resampling: Resampling | None = None,
        taps: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        self.form = form
        self.norm0 = nn.GroupNorm(groups(cin), cin, form.eps)
        self.conv0 = ResampleConv(cin, cout, 3, resampling, taps) if resampling else nn.Conv2d(cin, cout, 3, padding=1)
        self.affine = nn.Linear(emb, cout * (2 if form.adaptive else 1))
        self.norm1 = nn.GroupNorm(groups(cout), cout, form.eps)
        self.drop = nn.Dropout(dropout)
        self.conv1 = nn.Conv2d(cout, cout, 3, padding=1)
        self.skip: nn.Module = nn.Identity()
        if resampling:
            bare = cin == cout and not form.projected
            self.skip = Resample(resampling, taps) if bare else ResampleConv(cin, cout, 1, resampling, taps)
        elif cin != cout:
            self.skip = nn.Conv2d(cin, cout, 1)
        self.heads = 0
        if attention:
            self.heads, rest = divmod(cout, form.head_width or cout)
            if rest:
                raise ValueError(f"{cout} channels do not part into heads of {form.head_width}")
            self.norm2 = nn.GroupNorm(groups(cout), cout, form.eps)
            self.qkv = nn.Conv2d(cout, 3 * cout, 1)
            self.proj = nn.Conv2d(cout, cout, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Features x (B, Cin, S, S) and embedding emb (B, E) -> (B, Cout, S', S')."""
        h = self.conv0(F.silu(self.norm0(x)))
        given = self.affine(emb)[:, :, None, None]
        if self.form.adaptive:
            scale, shift = given.chunk(2, 1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), 1 + scale))
        else:
            h = F.silu(self.norm1(h + given))
        out: Tensor = (self.conv1(self.drop(h)) + self.skip(x)) * self.form.residual
        return (out + self.proj(self._attention(out))) * self.form.residual if self.heads else out

    def _attention(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        # channels of the published files: head, then channel of the head, then query, key or value
        q, k, v = self.qkv(self.norm2(x)).reshape(b, self.heads, c // self.heads, 3, h * w).unbind(3)
        return attend(q, k, v).reshape(b, c, h, w)


Make = Callable[[int, int, int, Place, "Resampling | None"], Block]
"""(channels in, channels out, side, place, resampling) -> the block there; `side` is that of its output."""


def pyramid(
    *, size: int, channels: int, first: int, widths: Sequence[int], blocks: int, make: Make, aux: Sequence[float] | None
) -> tuple[nn.ModuleDict, nn.ModuleDict, int]:
    """The encoder and the decoder by their published names, and the channels that come out.

    `first`: channels of the convolution before the first level; `widths`: of the levels, finest first; `aux`: taps of
    the input's path beside the encoder, None for no path. Raises ValueError for a side that cannot be halved so often.
    """
    if size % 2 ** (len(widths) - 1):
        raise ValueError(f"a side of {size} pixels cannot be halved {len(widths) - 1} times")
    enc, dec = nn.ModuleDict(), nn.ModuleDict()
    enc[f"{size}x{size}_conv"] = nn.Conv2d(channels, first, 3, padding=1)
    c, beside, skips = first, channels, [first]
    for level, width in enumerate(widths):
        side = size >> level
        if level:
            enc[f"{side}x{side}_down"] = make(c, c, side, "between", "down")
            skips.append(c)
            if aux:
                enc[f"{side}x{side}_aux_residual"] = AuxConv(beside, c, aux)
                beside = c
        for i in range(blocks):
            enc[f"{side}x{side}_block{i}"] = make(c, width, side, "encoder", None)
            c = width
            skips.append(c)
    for level, width in reversed(list(enumerate(widths))):
        side = size >> level
        if level == len(widths) - 1:
            dec[f"{side}x{side}_in0"] = make(c, c, side, "middle", None)
            dec[f"{side}x{side}_in1"] = make(c, c, side, "between", None)
        else:
            dec[f"{side}x{side}_up"] = make(c, c, side, "between", "up")
        for i in range(blocks + 1):
            place: Place = "last" if i == blocks else "decoder"
            dec[f"{side}x{side}_block{i}"] = make(c + skips.pop(), width, side, place, None)
            c = width
    return enc, dec, c


def climb(enc: nn.ModuleDict, dec: nn.ModuleDict, x: Tensor, emb: Tensor, residual: float) -> Tensor:
    """x (B, C, S, S) down the encoder and up the decoder: (B, widths[0], S, S). Other modules of `dec` are left out."""
    beside, skips = x, list[Tensor]()
    for module in enc.children():
        if isinstance(module, Block):
            x = module(x, emb)
            skips.append(x)
        elif isinstance(module, AuxConv):
            beside = skips[-1] = x = (x + module(beside)) * residual
        else:
            x = module(x)
            skips.append(x)
    for name, module in dec.items():
        if isinstance(module, Block):
            x = module(torch.cat([x, skips.pop()], 1) if "_block" in name else x, emb)
    return x
