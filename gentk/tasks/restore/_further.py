"""The torch side of `restore ambient`: a denoiser that is shown less than was measured and judged on all of it.

It is told its mask, where there are masks, by a channel of its own. It knows no level below the measurements' noise:
samples walk down to sigma and end on its answer there, with one mask for a sample's whole way, as published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gentk import nets
from gentk.engine import rng
from gentk.engine.draw import batches
from gentk.engine.generative import Judge, picture
from gentk.engine.method import Batch, Export, Metrics, Phase, Result
from gentk.errors import RecipeError
from gentk.losses import ambient
from gentk.metrics.paired import psnr
from gentk.operators import Operator
from gentk.operators.identity import Identity
from gentk.operators.masks import Masked
from gentk.processes import rows, schedules, times
from gentk.processes.denoiser import Denoiser, at_sigma
from gentk.processes.grids import karras
from gentk.processes.models import fast_layout
from gentk.recipe.schema import VE
from gentk.restoring import Denoise
from gentk.tasks.restore._corrupted import Corrupted, data_header

_PROCESS = VE(name="ve")
_RANGE, _RHO = (0.02, 80.0), 7.0  # of the levels that samples walk; never below sigma


class Ambient:
    """A `Trainable`: the further corrupted error of `losses.ambient`."""

    def __init__(self, recipe: Any, where: torch.device) -> None:
        self.recipe, self.config, self.where = recipe, recipe.method, where
        self.data, self.test = Corrupted(recipe, "train", where), Corrupted(recipe, "test", where)
        op, shape = self.data.operator(torch.arange(1)), self.data.shape
        if not isinstance(op, Identity | Masked):
            raise RecipeError(
                f"operator: `ambient` learns from masked or noisy samples, not from `{recipe.operator.name}`",
                hint="gentk restore em, or flowdiff, for other operators",
            )
        torch.manual_seed(recipe.seed)  # the initial weights
        seen = (shape[0] + isinstance(op, Masked), *shape[1:])
        net = nets.build(recipe.net, shape=seen, classes=0)
        denoiser = Denoiser(fast_layout(net), schedules.build(_PROCESS), "edm", self.config.sigma_data).to(where)
        self.nets, self.ema, self.optim = {"denoiser": denoiser}, ("denoiser",), {"denoiser": recipe.optim.denoiser}
        self.judge = Judge(recipe.measure, self.data.clean, self.test.clean, where) if recipe.measure else None

    def phases(self, step: int) -> Iterator[Phase]:
        """One update of the denoiser."""
        yield Phase("denoiser", ("denoiser",), self._loss)

    def _loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        y, index, denoiser = batch.x, batch.y, self.nets["denoiser"]
        assert y is not None
        assert index is not None
        assert isinstance(denoiser, Denoiser)
        op = self.data.operator(index.cpu())
        seen = op.seen(torch.ones_like(y))
        kept = ambient.hidden(seen, self.config.hide, gen) if isinstance(op, Masked) else seen
        s = times.draw(self.config.noise, denoiser.process, len(y), gen, self.where)
        eps = rows.randn(y.shape, gen, device=self.where)
        told = Told(denoiser, isinstance(op, Masked))
        return ambient.further(told, y, seen, kept, s, eps, self.recipe.sigma, self.config.sigma_data).mean(), {}

    def _sampler(self, averaged: Mapping[str, nn.Module]) -> Masking:
        denoiser = averaged["denoiser"]
        assert isinstance(denoiser, Denoiser)
        masked = isinstance(self.data.operator(torch.arange(1)), Masked)
        steps = 18 if self.recipe.measure is None else self.recipe.measure.steps
        low = max(self.recipe.sigma, _RANGE[0])
        return Masking(Told(denoiser, masked), self, tuple(karras(steps, low, _RANGE[1], _RHO).tolist()))

    def masks(self, first: int, n: int, seed: int) -> Tensor:
        """What samples `first` to `first + n` are shown: masks as in training, for which nothing was measured."""
        found = []
        for k in range(first, first + n):
            gen = rng.generator(seed, "sample's mask", k)
            pick = torch.randint(len(self.data), (1,), generator=gen)
            op: Operator = self.data.operator(pick)
            seen = op.seen(torch.ones(1, *self.data.shape, device=self.where)).cpu()
            found.append(ambient.hidden(seen, self.config.hide, gen) if isinstance(op, Masked) else seen)
        return torch.cat(found).to(self.where)

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Samples and their Frechet distance to clean images."""
        sampler, seed = self._sampler(averaged), self.recipe.seed
        shown = picture({"prior": sampler(100 if len(self.data.shape) == 3 else 2000, seed)})
        return Result(self.judge.glance(sampler, seed) if self.judge else {}, {"prior": shown})

    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Figures of samples and of held-out measurements restored by one call; the denoiser."""
        sampler = self._sampler(averaged)
        figures = self.judge(sampler, self.recipe.seed) if self.judge else {}
        y, op, truth = self.test.first(self.recipe.held.n)
        with torch.no_grad():
            seen = op.seen(torch.ones_like(y))
            x0 = sampler.told(y, seen, torch.full((len(y),), self.recipe.sigma, device=self.where))
        figures["rmse_mean"] = float((x0 - truth).square().mean().sqrt())
        if truth.dim() == 4:
            figures["psnr_mean"] = float(psnr(x0.clamp(-1, 1), truth, data_range=2).mean())
        header = {
            "kind": "ambient",
            "net": self.recipe.net.model_dump(mode="json"),
            "process": _PROCESS.model_dump(mode="json"),
            "predicts": "edm",
            "sigma_data": self.config.sigma_data,
            "operator": self.recipe.operator.model_dump(mode="json"),
            "sigma": self.recipe.sigma,
            "data": data_header(self.recipe, self.data.shape),
            "licence": "Apache-2.0",
        }
        return Result(figures, exports={"prior": Export(sampler.told.denoiser.net, header)})


@dataclass(frozen=True, eq=False)
class Told:
    """A denoiser as D(K x, K, t), its last channel the mask where there is one, at the scale that leaves it 0 and 1."""

    denoiser: Denoiser
    masked: bool

    def __call__(self, x: Tensor, kept: Tensor, t: Tensor) -> Tensor:
        """x (B, C, ...) with 0 where nothing is kept, kept of its shape, t (B,) -> (B, C, ...)."""
        if not self.masked:
            return at_sigma(self.denoiser, x, t)
        scale = (t.to(x).square() + self.denoiser.sigma_data**2).sqrt().reshape(-1, 1, 1, 1)
        return at_sigma(self.denoiser, torch.cat([x, scale * kept[:, :1]], 1), t)[:, :-1]


@dataclass(frozen=True, eq=False)
class Masking:
    """Samples by Heun's method on the denoiser under each sample's mask; the last level's answer is the sample."""

    told: Told
    of: Ambient
    levels: tuple[float, ...]

    @property
    def nfe(self) -> int:
        """Network evaluations per sample."""
        return 2 * (len(self.levels) - 2) + 1

    def __call__(self, n: int, seed: int, *, batch: int = 500) -> Tensor:
        """Samples 0 to n of `seed`: float32 (n, *shape) on the CPU."""
        return torch.cat([self.part(start, count, seed) for start, count in batches(0, n, batch)])

    @torch.no_grad()  # sampling only
    def part(self, first: int, n: int, seed: int) -> Tensor:
        """Samples `first` to `first + n` of `seed`."""
        kept = self.of.masks(first, n, seed)
        x = rng.noise(seed, first, n, self.of.data.shape, purpose="start").to(self.of.where)

        def denoise(x: Tensor, s: float) -> Tensor:
            return self.told(kept * x, kept, torch.full((len(x),), s, device=x.device))

        return walked(denoise, self.levels[0] * x, self.levels).cpu()


def walked(denoise: Denoise, x: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Heun's method on dx/ds = (x - D) / s down to the last level above 0, then D there."""
    for s, u in pairwise(levels[:-1]):
        slope = (x - denoise(x, s)) / s
        y = x + (u - s) * slope
        x = x + (u - s) * 0.5 * (slope + (y - denoise(y, u)) / u)
    return denoise(x, levels[-2])
