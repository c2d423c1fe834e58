"""A normalising flow of grey images in whole numbers 0..255: affine couplings on a checkerboard (RealNVP).

Dinh et al. 2017 (arXiv:1605.08803) with the gated networks and the learned dequantisation of Flow++ (Ho et al. 2019,
arXiv:1902.00275); the names of the tensors are those of phlippe's tutorial 11 ("MNISTFlow"), so that its published
weights load. Pixels, noise and log-determinants are kept in the dtype that comes in, float64 for a measurement; inside
the networks it is that of their weights.
"""

from __future__ import annotations

import math
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ALPHA = 1e-5  # [0, 1] shrinks by so much before the logit, which is infinite at its ends
_LEVELS = 256


class CouplingFlow(nn.Module):
    """`flow(x, u)`: images (B, 1, S, S) of 0..255 and noise in [0, 1) of their shape -> log-likelihood (B,) in nats.

    For uniform `u` its mean is a lower bound of the log-likelihood, and the mean of its exponential the probability of
    the image, but for noise that shaping leaves out. With `noise_width` a second flow shapes the noise to the image
    (variational dequantisation), which tightens the bound.
    """

    def __init__(
        self,
        *,
        side: int = 28,
        couplings: int = 8,
        width: int = 32,
        noise_couplings: int = 4,
        noise_width: int | None = None,
    ) -> None:
        super().__init__()
        noise = Noise(side, noise_couplings if noise_width else 0, noise_width or 0)
        layers = (Coupling(side, width, odd=bool(i % 2)) for i in range(couplings))
        self.flows = nn.ModuleList(chain([noise], layers))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """x (B, 1, S, S), whole numbers 0..255, and u in [0, 1) -> log p(x + u) - log q(u | x) (B,), in nats."""
        x = x.to(u.dtype)
        u, noise_logdet = self.flows[0](u, 2 * x / (_LEVELS - 1) - 1)
        z, logdet = self.encode((x + u) / _LEVELS)
        prior = _sum(-0.5 * z.square() - 0.5 * math.log(2 * math.pi))
        out: Tensor = prior + logdet + noise_logdet - math.log(_LEVELS) * x[0].numel()
        return out

    def encode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Continuous pixels y (B, 1, S, S) in [0, 1] -> latents z of their shape, log |det dz/dy| (B,)."""
        z, logdet = logit(y)
        for coupling in self._couplings():
            z, part = coupling(z)
            logdet = logdet + part
        return z, logdet

    def decode(self, z: Tensor) -> Tensor:
        """The inverse of `encode`; of z from N(0, 1), floor(256 decode(z)) are the images the flow itself believes."""
        for coupling in reversed(self._couplings()):
            z = coupling.inverse(z)
        return unlogit(z)[0]

    def _couplings(self) -> list[Coupling]:
        return [flow for flow in self.flows if isinstance(flow, Coupling)]


class Noise(nn.Module):
    """`noise(u, image)`: uniform noise -> noise fit for the image, and the log-determinant; without couplings itself.

    Both (B, 1, S, S), u in [0, 1), image in [-1, 1]; the log-determinant (B,).
    """

    def __init__(self, side: int, couplings: int, width: int) -> None:
        super().__init__()
        self.flows = nn.ModuleList(Coupling(side, width, odd=bool(i % 2), context=1) for i in range(couplings))

    def forward(self, u: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """u, image (B, 1, S, S) -> noise of their shape, log |det d noise / d u| (B,)."""
        if not len(self.flows):
            return u, u.new_zeros(len(u))
        z, logdet = logit(u)
        for coupling in self.flows:
            z, part = coupling(z, image)
            logdet = logdet + part
        out, part = unlogit(z)
        return out, logdet + part


class Coupling(nn.Module):
    """z <- (z + t) e^s where the mask is 0, with s and t from the pixels where it is 1, and from a context if any.

    The checkerboard of even couplings keeps the pixels of odd row + column, that of odd ones the others.
    """

    mask: Tensor

    def __init__(self, side: int, width: int, *, odd: bool, context: int = 0) -> None:
        super().__init__()
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        self.register_buffer("mask", ((rows + columns + odd) % 2).float()[None, None])
        self.scaling_factor = nn.Parameter(torch.zeros(1))
        self.network = GatedConvNet(1 + context, width)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (B, 1, S, S), context (B, K, S, S) -> z of the same shape, log-determinant (B,)."""
        s, t = self._scale_and_shift(z, context)
        return (z + t) * s.exp(), _sum(s)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Undoes `forward` with the same context."""
        s, t = self._scale_and_shift(z, context)
        return z * (-s).exp() - t

    def _scale_and_shift(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        seen = z * self.mask
        seen = seen if context is None else torch.cat([seen, context], 1)
        s, t = self.network(seen.to(self.mask.dtype)).to(z.dtype).chunk(2, 1)
        most = self.scaling_factor.exp().to(z.dtype)  # |s| stays below it
        return (s / most).tanh() * most * (1 - self.mask), t * (1 - self.mask)


class GatedConvNet(nn.Module):
    """(B, inputs, S, S) -> (B, 2, S, S): three gated convolutions between two plain ones."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        gated = chain.from_iterable((GatedConv(width), ChannelNorm(width)) for _ in range(3))
        out = nn.Conv2d(2 * width, 2, 3, padding=1)
        self.nn = nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), *gated, ConcatElu(), out)
        nn.init.zeros_(out.weight)  # an untrained coupling changes nothing
        assert out.bias is not None
        nn.init.zeros_(out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, inputs, S, S) -> (B, 2, S, S)."""
        out: Tensor = self.nn(x)
        return out


class GatedConv(nn.Module):
    """h + v sigmoid(g), with (v, g) from two convolutions of h: (B, W, S, S) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            ConcatElu(), nn.Conv2d(2 * width, width, 3, padding=1), ConcatElu(), nn.Conv2d(2 * width, 2 * width, 1)
        )

    def forward(self, h: Tensor) -> Tensor:
        """h (B, W, S, S) -> the same shape."""
        value, gate = self.net(h).chunk(2, 1)
        out: Tensor = h + value * gate.sigmoid()
        return out


class ConcatElu(nn.Module):
    """ELU of x and of -x, side by side: (B, W, S, S) -> (B, 2 W, S, S)."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, W, S, S) -> (B, 2 W, S, S)."""
        return torch.cat([F.elu(x), F.elu(-x)], 1)


class ChannelNorm(nn.Module):
    """Each pixel's channels with mean 0 and variance 1, times `gamma` plus `beta`: (B, W, S, S) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, width, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, W, S, S) -> the same shape."""
        # torch's own takes the last dimension: in channels-last order the permutation copies nothing.
        channels = (x.shape[1],)
        x = F.layer_norm(x.permute(0, 2, 3, 1), channels, self.gamma.flatten(), self.beta.flatten())
        return x.permute(0, 3, 1, 2)


def logit(y: Tensor) -> tuple[Tensor, Tensor]:
    """y (B, ...) in [0, 1] -> logit of y shrunk into (0, 1), of the same shape; log-determinant (B,)."""
    y = y * (1 - _ALPHA) + 0.5 * _ALPHA
    return y.logit(), _sum(math.log(1 - _ALPHA) - y.log() - (-y).log1p())


def unlogit(z: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `logit`: z (B, ...) -> y of the same shape, log-determinant (B,)."""
    y = (z.sigmoid() - 0.5 * _ALPHA) / (1 - _ALPHA)
    return y, _sum(F.logsigmoid(z) + F.logsigmoid(-z) - math.log(1 - _ALPHA))


def _sum(x: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    return x.flatten(1).sum(1)
