"""Energies: networks that give each sample a number, low where the data are; the density is proportional to exp(-U).

    symbol   meaning
    U        the energy; log density = -U - log Z, so that U is free up to a constant
    t        standard deviation of the noise in the samples: a time-dependent energy is one of noised data for each t
    sd       standard deviation of the data about their mean c
    h, s     (x - c) / sqrt(sd^2 + t^2), of unit variance, and t / sd: what a body sees

Activations are smooth: samplers follow the gradient, and score matching differentiates it. There is no batch norm and
no dropout, which would make one sample's energy depend on its neighbours or on chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from gentk.errors import RecipeError
from gentk.nets.unet import UNet, frequencies
from gentk.recipe.networks import EnergyConv, EnergyMlp, EnergyNet, EnergyUNet

Body = Callable[[Tensor, Tensor | None], Tensor]
"""(h (B, ...), s (B,) or None) -> (B,)."""


class Energy(nn.Module):
    """`energy(x, t)`: samples x (B, ...) -> U (B,), each row by itself; the density is proportional to exp(-U).

    A static energy (`levels` None) takes no t. A time-dependent one takes t, () or (B,), a noise level in the units of
    x within `levels`, (smallest, largest); without t it is the energy at the smallest. `tail` adds
    |x - c|^2 / (2 ((tail sd)^2 + t^2)), so that the density can be normalised however the network behaves far from the
    data; None: the body sees to that. Buffers: `centre` c, `sd`, and `offset`, which is subtracted.
    """

    centre: Tensor
    sd: Tensor
    offset: Tensor

    def __init__(
        self, body: nn.Module, *, centre: Tensor, sd: float, tail: float | None, levels: tuple[float, float] | None
    ) -> None:
        super().__init__()
        self.body = body
        self.tail, self.levels = tail, levels
        self.register_buffer("centre", centre)
        self.register_buffer("sd", torch.tensor(sd, dtype=centre.dtype))
        self.register_buffer("offset", torch.zeros((), dtype=centre.dtype))

    def forward(self, x: Tensor, t: Tensor | float | None = None) -> Tensor:
        """x (B, ...), t () or (B,) or None -> U (B,). Raises ValueError for a level that the energy does not know."""
        body = cast(Body, self.body)
        if self.levels is None:
            if t is not None:
                raise ValueError("a static energy has no noise level")
            h = (x - self.centre) / self.sd
            out = body(h, None)
            spread = torch.ones((), dtype=x.dtype, device=x.device) if self.tail is None else self.tail**2 * self.sd**2
        else:
            t = torch.as_tensor(self.levels[0] if t is None else t, dtype=x.dtype, device=x.device).expand(len(x))
            h = (x - self.centre) / _rows((self.sd**2 + t**2).sqrt(), x)
            out = body(h, t / self.sd)
            spread = t**2 if self.tail is None else (self.tail * self.sd) ** 2 + t**2
        if self.tail is not None:
            out = out + (x - self.centre).square().flatten(1).sum(1) / (2 * spread)
        return out - self.offset

    def score(self, x: Tensor, t: Tensor | float | None = None) -> Tensor:
        """The score -grad U at x (B, ...), of the same shape, detached."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self(x, t).sum(), x)
        return -grad


def build(
    section: EnergyNet, *, shape: tuple[int, ...], levels: tuple[float, float] | None = None, data: Tensor | None = None
) -> Energy:
    """The energy of a section for samples of `shape`, (C, S, S) or (D,).

    `levels`: smallest and largest noise level of a time-dependent energy. `data` (N, *shape), which centre and scale
    are taken from; without it they are 0 and 1, to be filled from a file. Raises RecipeError for what does not fit.
    """
    settings, timed = section.model_dump(exclude={"name", "tail"}), levels is not None
    body: nn.Module
    if isinstance(section, EnergyMlp):
        if len(shape) != 1:
            raise RecipeError(f"net.name: `energy-mlp` takes points, the data has shape {shape}", hint="energy-conv")
        body = MlpBody(dim=shape[0], timed=timed, **settings)
        centre = torch.zeros(shape)
    else:
        if len(shape) != 3 or shape[1] != shape[2]:
            raise RecipeError(
                f"net.name: `{section.name}` takes square images, the data has shape {shape}",
                hint="points: --recipe train-ebm/dcd/points-rings --data NAME, whose net is energy-mlp",
            )
        halvings = len(section.multipliers) - 1
        if shape[1] % 2**halvings:
            raise RecipeError(
                f"net.multipliers: {halvings + 1} levels need a side divisible by {2**halvings}, "
                f"the images have {shape[1]}",
                hint="use fewer levels: --set net.multipliers='[1, 2]'",
            )
        if isinstance(section, EnergyConv):
            body = ConvBody(channels=shape[0], timed=timed, **settings)
        else:
            if not timed:
                raise RecipeError("net.name: `energy-unet` is an energy of noised data", hint="give method.levels")
            sides = [shape[1] // 2**level for level in range(halvings + 1)]
            if unused := [side for side in section.attention if side not in sides]:
                raise RecipeError(f"net.attention: no level has a side of {unused[0]} pixels; the levels have {sides}")
            body = UNetBody(size=shape[1], channels=shape[0], **settings)
        centre = torch.zeros(shape[0], 1, 1)
    sd = 1.0
    if data is not None:
        centre = data.mean(0) if data.dim() == 2 else data.mean((0, 2, 3)).reshape(-1, 1, 1)
        sd = float((data - centre).square().mean().sqrt())
        if not sd > 0:
            raise RecipeError("data: all samples are the same, there is no density to learn")
    tail = None if isinstance(section, EnergyUNet) else section.tail
    return Energy(body, centre=centre, sd=sd, tail=tail, levels=levels)


class MlpBody(nn.Module):
    """Linear layers with SiLU between, on h and cosines and sines of it: (B, D), (B,) or None -> (B,).

    The `waves` have angular frequencies from N(0, frequency^2 I), fixed: without them a network of h alone takes many
    times as long to learn modes that are narrow beside the whole (Tancik et al. 2020, arXiv:2006.10739).
    """

    directions: Tensor

    def __init__(
        self, *, dim: int, width: int, depth: int, waves: int, frequency: float, spectral: bool, timed: bool
    ) -> None:
        super().__init__()
        wrap = spectral_norm if spectral else _plain
        self.time = nn.Linear(width, width) if timed else None
        self.width = width
        self.register_buffer("directions", frequency * torch.randn(waves, dim))
        self.inp = wrap(nn.Linear(dim + 2 * waves, width))
        self.layers = nn.ModuleList(wrap(nn.Linear(width, width)) for _ in range(depth - 1))
        self.out = wrap(nn.Linear(width, 1))
        self.gain = nn.Parameter(torch.zeros(())) if spectral else None

    def forward(self, h: Tensor, s: Tensor | None) -> Tensor:
        """h (B, D), s (B,) or None -> (B,)."""
        phase = h @ self.directions.T
        y = self.inp(torch.cat([h, phase.cos(), phase.sin()], 1))
        if self.time is not None:
            assert s is not None
            y = y + self.time(frequencies(s.log() / 4, self.width))
        for layer in self.layers:
            y = layer(F.silu(y))
        return _gained(self.out(F.silu(y))[:, 0], self.gain)


class ConvBody(nn.Module):
    """Residual convolutions without norms, averaged down; the sum over pixels of a last one: (B, C, S, S) -> (B,)."""

    def __init__(
        self, *, channels: int, width: int, multipliers: tuple[int, ...], blocks: int, spectral: bool, timed: bool
    ) -> None:
        super().__init__()
        wrap = spectral_norm if spectral else _plain
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU()) if timed else None
        self.inp = wrap(nn.Conv2d(channels, width, 3, padding=1))
        self.stages = nn.ModuleList()
        last = width
        for multiple in multipliers:
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(_Residual(last, multiple * width, width if timed else 0, wrap))
                last = multiple * width
            self.stages.append(stage)
        self.out = wrap(nn.Linear(last, 1))
        self.gain = nn.Parameter(torch.zeros(())) if spectral else None

    def forward(self, h: Tensor, s: Tensor | None) -> Tensor:
        """h (B, C, S, S), s (B,) or None -> (B,)."""
        emb = None
        if self.time is not None:
            assert s is not None
            emb = self.time(frequencies(s.log() / 4, self.width))
        y = self.inp(h)
        for level, stage in enumerate(self.stages):
            if level:
                y = F.avg_pool2d(y, 2)
            for block in cast(nn.ModuleList, stage):
                y = block(y, emb)
        return _gained(self.out(F.silu(y).sum((2, 3)))[:, 0], self.gain)


class _Residual(nn.Module):
    """skip(x) + f(x), f of two convolutions, the noise level added between: (B, Cin, H, W) -> (B, Cout, H, W)."""

    def __init__(self, inputs: int, outputs: int, emb: int, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.conv0 = wrap(nn.Conv2d(inputs, outputs, 3, padding=1))
        self.conv1 = wrap(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = wrap(nn.Conv2d(inputs, outputs, 1)) if inputs != outputs else nn.Identity()
        self.level = nn.Linear(emb, outputs) if emb else None

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        """x (B, Cin, H, W), emb (B, E) or None -> (B, Cout, H, W)."""
        y = self.conv0(F.silu(x))
        if self.level is not None:
            y = y + self.level(emb)[:, :, None, None]
        out: Tensor = self.skip(x) + self.conv1(F.silu(y))
        return out


class UNetBody(nn.Module):
    """|h|^2 / 2 - <h, F(h)> / 2s with a U-Net F: (B, C, S, S), (B,) -> (B,).

    It is <x - c, x - D> / 2t^2 for the denoiser D that F is in EDM's preconditioning. Where D is a projection onto the
    data, as denoisers at small t are, that is their distance |x - D|^2 / 2t^2 and its score is (D - x) / t^2; with
    F = 0 it is the normal law of the noised data. F's norms bound it, so the first term prevails far away.
    After Salimans and Ho 2021, "Should EBMs model the energy or the score?".
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
    ) -> None:
        super().__init__()
        self.net = UNet(
            size=size,
            channels=channels,
            classes=0,
            width=width,
            multipliers=multipliers,
            blocks=blocks,
            attention=attention,
            dropout=0.0,
        )
        assert self.net.out.bias is not None
        nn.init.zeros_(self.net.out.bias)  # with its weight: F = 0 at the start

    def forward(self, h: Tensor, s: Tensor | None) -> Tensor:
        """h (B, C, S, S), s (B,) -> (B,)."""
        assert s is not None
        inner = (h * self.net(h, s.log() / 4)).flatten(1).sum(1)
        out: Tensor = h.square().flatten(1).sum(1) / 2 - inner / (2 * s)
        return out


def _plain(layer: nn.Module) -> nn.Module:
    return layer


def _gained(out: Tensor, gain: Tensor | None) -> Tensor:
    """Layers of norm 1 cannot make an energy steeper than the data's scale: one number makes up for it."""
    return out if gain is None else out * gain.exp()


def _rows(a: Tensor, x: Tensor) -> Tensor:
    """a (B,) shaped to multiply x (B, ...)."""
    return a.reshape(-1, *(1,) * (x.dim() - 1))
