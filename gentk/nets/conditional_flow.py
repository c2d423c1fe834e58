"""Conditional normalising flows x = G(z; context) for posteriors: exact log-determinants, both directions.

Images: Glow (Kingma & Dhariwal 2018, arXiv:1807.03039), its couplings told of the context as in conditional flows
(Winkler et al. 2019, arXiv:1912.00042). Each level squeezes 2 x 2 pixels into channels, leaves half of them to this
level alone and hands the rest to the next, then takes its steps {actnorm, 1 x 1 convolution in P L U form, affine
coupling}. Points have the same steps with a matrix in place of the convolution.

    z -> u, of variance about 1 at the start -> x = base + m + exp(g) u

`base` and `width` are a guess of the posterior's mean and deviation that comes from outside; m and g - ln width are
what a network of their own, the guide, makes of context and base, so log|det dx/dz| = the steps' + sum of g. The
posterior's mean is most of what there is to learn, and couplings, which see y through few features, learn it slowly.
Everything is kept in x's dtype, which must be float32 or wider; log-scales are bounded, so that nothing can overflow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentk.errors import RecipeError
from gentk.recipe.restoring import Couplings, Flow, Glow


class ConditionalGlow(nn.Module):
    """`flow(z, context, base, width)` -> x, log|det dx/dz|: images (B, C, S, S), context (B, K, S, S), (B,)."""

    def __init__(
        self,
        shape: tuple[int, ...],
        context: int,
        *,
        levels: int,
        steps: int,
        width: int,
        features: int,
        guide: int,
        guide_blocks: int,
        bound: float,
    ) -> None:
        super().__init__()
        channels = shape[0]
        self.eyes = nn.ModuleList()
        self.levels = nn.ModuleList()
        seen = 4 * context
        for level in range(levels):
            channels = 4 * channels if level == 0 else 2 * channels  # half of the squeezed level before, squeezed
            self.eyes.append(
                nn.Sequential(
                    nn.Conv2d(seen, features, 3, padding=1), nn.SiLU(), nn.Conv2d(features, features, 3, padding=1)
                )
            )
            seen = 4 * features
            self.levels.append(nn.ModuleList(Step(channels, features, width, bound, image=True) for _ in range(steps)))
        last = nn.Conv2d(guide, 2 * shape[0], 3, padding=1)
        _zero(last)
        blocks = [Residual(guide) for _ in range(guide_blocks)]
        self.guide = nn.Sequential(nn.Conv2d(context + shape[0], guide, 3, padding=1), *blocks, nn.SiLU(), last)

    def forward(self, z: Tensor, context: Tensor, base: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """z -> x (B, C, S, S), log|det dx/dz| (B,)."""
        u, logdet = self._up(0, z, self._features(context), z.new_zeros(len(z)))
        m, g = self._law(context, base, width)
        return m + g.exp() * u, logdet + g.flatten(1).sum(1)

    def inverse(self, x: Tensor, context: Tensor, base: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """x -> z (B, C, S, S), log|det dz/dx| (B,)."""
        m, g = self._law(context, base, width)
        z, logdet = self._down(0, (x - m) / g.exp(), self._features(context), x.new_zeros(len(x)))
        return z, logdet - g.flatten(1).sum(1)

    def _law(self, context: Tensor, base: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        shift, change = self.guide(torch.cat([context, base], 1)).chunk(2, 1)
        return base + shift, width.log() + 2 * torch.tanh(change / 2)  # a factor e^2 either way

    def _features(self, context: Tensor) -> list[Tensor]:
        found = []
        for eye in self.eyes:
            context = eye(F.pixel_unshuffle(context, 2))
            found.append(context)
        return found

    def _up(self, level: int, h: Tensor, seen: list[Tensor], logdet: Tensor) -> tuple[Tensor, Tensor]:
        h = F.pixel_unshuffle(h, 2)
        if level + 1 < len(self.levels):
            own, rest = h.chunk(2, 1)
            rest, logdet = self._up(level + 1, rest, seen, logdet)
            h = torch.cat([own, rest], 1)
        for step in self._steps(level):
            h, part = step(h, seen[level])
            logdet = logdet + part
        return F.pixel_shuffle(h, 2), logdet

    def _down(self, level: int, h: Tensor, seen: list[Tensor], logdet: Tensor) -> tuple[Tensor, Tensor]:
        h = F.pixel_unshuffle(h, 2)
        for step in reversed(self._steps(level)):
            h, part = step.inverse(h, seen[level])
            logdet = logdet + part
        if level + 1 < len(self.levels):
            own, rest = h.chunk(2, 1)
            rest, logdet = self._down(level + 1, rest, seen, logdet)
            h = torch.cat([own, rest], 1)
        return F.pixel_shuffle(h, 2), logdet

    def _steps(self, level: int) -> list[Step]:
        level_steps = self.levels[level]
        assert isinstance(level_steps, nn.ModuleList)
        return [step for step in level_steps if isinstance(step, Step)]


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), the second convolution 0 at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        _zero(self.second)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> the same."""
        out: Tensor = x + self.second(F.silu(self.first(F.silu(x))))
        return out


class PointFlow(nn.Module):
    """`flow(z, context, base, width)` -> x, log|det dx/dz|: points (B, D), context (B, K)."""

    def __init__(self, dim: int, context: int, *, steps: int, width: int, depth: int, bound: float) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Step(dim, context, width, bound, image=False, depth=depth) for _ in range(steps))

    def forward(self, z: Tensor, context: Tensor, base: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """z -> x (B, D), log|det dx/dz| (B,)."""
        logdet = width.log().sum(1)
        for step in self.steps:
            z, part = step(z, context)
            logdet = logdet + part
        return base + width * z, logdet

    def inverse(self, x: Tensor, context: Tensor, base: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """x -> z (B, D), log|det dz/dx| (B,)."""
        h, logdet = (x - base) / width, -width.log().sum(1)
        for step in reversed([step for step in self.steps if isinstance(step, Step)]):
            h, part = step.inverse(h, context)
            logdet = logdet + part
        return h, logdet


class Step(nn.Module):
    """Actnorm, an invertible matrix over the channels, and a coupling: (B, C, ...) -> the same, log-determinant (B,).

    At the start the actnorm is the identity and the matrix a rotation: what comes in is standard normal, and stays so.
    """

    order: Tensor
    signs: Tensor

    def __init__(self, channels: int, context: int, width: int, bound: float, *, image: bool, depth: int = 2) -> None:
        super().__init__()
        self.image, self.bound = image, bound
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
        order, lower, upper = torch.linalg.lu(rotation)
        self.register_buffer("order", order)
        self.register_buffer("signs", upper.diagonal().sign())
        self.log_diagonal = nn.Parameter(upper.diagonal().abs().log())
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.kept = channels // 2
        seen, made = self.kept + context, 2 * (channels - self.kept)
        self.net = _conv(seen, width, made) if image else _mlp(seen, width, made, depth)
        _zero(self.net[-1])

    def forward(self, h: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """h -> its image, log-determinant (B,)."""
        h = self._matrix_times(self._matrix(), h * self._along(self.log_scale).exp() + self._along(self.shift))
        kept, moved = h[:, : self.kept], h[:, self.kept :]
        s, t = self._coupling(kept, context)
        return torch.cat([kept, moved * s.exp() + t], 1), s.flatten(1).sum(1) + self._constant(h)

    def inverse(self, h: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Undoes `forward`; the log-determinant is that of the inverse."""
        kept, moved = h[:, : self.kept], h[:, self.kept :]
        s, t = self._coupling(kept, context)
        h = torch.cat([kept, (moved - t) * (-s).exp()], 1)
        h = self._matrix_times(torch.linalg.inv(self._matrix()), h)
        h = (h - self._along(self.shift)) * (-self._along(self.log_scale)).exp()
        return h, -s.flatten(1).sum(1) - self._constant(h)

    def _coupling(self, kept: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.net(torch.cat([kept, context], 1)).chunk(2, 1)
        return self.bound * torch.tanh(s / self.bound), t

    def _matrix(self) -> Tensor:
        eye = torch.eye(len(self.order), dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + torch.diag(self.signs * self.log_diagonal.exp())
        product: Tensor = self.order @ (self.lower.tril(-1) + eye) @ upper
        return product

    def _matrix_times(self, matrix: Tensor, h: Tensor) -> Tensor:
        return F.conv2d(h, matrix[:, :, None, None]) if self.image else h @ matrix.T

    def _constant(self, h: Tensor) -> Tensor:
        pixels = h[0, 0].numel()
        return pixels * (self.log_scale.sum() + self.log_diagonal.sum())

    def _along(self, v: Tensor) -> Tensor:
        return v[:, None, None] if self.image else v


def build(section: Flow, *, shape: tuple[int, ...], context: int) -> ConditionalGlow | PointFlow:
    """The flow of a section for samples of `shape` and a context of so many channels (or numbers).

    Raises RecipeError where the network cannot take such samples.
    """
    settings = section.model_dump(exclude={"name"})
    if isinstance(section, Couplings):
        if len(shape) != 1:
            raise RecipeError(f"flow.name: `couplings` takes points, the data has shape {shape}", hint="use `glow`")
        return PointFlow(shape[0], context, **settings)
    assert isinstance(section, Glow)
    if len(shape) != 3:
        raise RecipeError(f"flow.name: `glow` takes images, the data has shape {shape}", hint="use `couplings`")
    if shape[1] % 2**section.levels or shape[2] % 2**section.levels:
        raise RecipeError(
            f"flow.levels: {section.levels} halvings need a side divisible by {2**section.levels}, the images have "
            f"{shape[1]}",
            hint="use fewer levels",
        )
    return ConditionalGlow(shape, context, **settings)


def _conv(seen: int, width: int, made: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(seen, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, width, 1),
        nn.SiLU(),
        nn.Conv2d(width, made, 3, padding=1),
    )


def _mlp(seen: int, width: int, made: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(seen, width), nn.SiLU()]
        seen = width
    return nn.Sequential(*layers, nn.Linear(seen, made))


def _zero(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
