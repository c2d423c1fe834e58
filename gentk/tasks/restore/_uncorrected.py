"""The torch side of `restore naive`: one denoiser, on measurements as if they were images, or on the clean images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gentk import nets, operators
from gentk.engine.generative import Judge, Sampler, picture
from gentk.engine.method import Batch, Metrics, Phase, Result
from gentk.losses.matching import edm
from gentk.processes import rows, schedules, times
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import fast_layout
from gentk.recipe.schema import VE
from gentk.tasks.restore._corrupted import Corrupted, prior_export

_PROCESS = VE(name="ve")


class Naive:
    """A `Trainable`: EDM's loss on H^+ y (y itself where it has the image's shape), or on x."""

    def __init__(self, recipe: Any, where: torch.device) -> None:
        self.recipe, self.config, self.where = recipe, recipe.method, where
        self.data, test = Corrupted(recipe, "train", where), Corrupted(recipe, "test", where)
        torch.manual_seed(recipe.seed)  # the initial weights
        net = nets.build(recipe.net, shape=self.data.shape, classes=0)
        denoiser = Denoiser(fast_layout(net), schedules.build(_PROCESS), "edm", self.config.sigma_data).to(where)
        self.nets, self.ema, self.optim = {"denoiser": denoiser}, ("denoiser",), {"denoiser": recipe.optim.denoiser}
        self.judge = Judge(recipe.measure, self.data.clean, test.clean, where) if recipe.measure else None

    def phases(self, step: int) -> Iterator[Phase]:
        """One update of the denoiser."""
        yield Phase("denoiser", ("denoiser",), self._loss)

    def seen(self, batch: Batch) -> Tensor:
        """What is taken for images: (B, *shape)."""
        y, index = batch.x, batch.y
        assert y is not None
        assert index is not None
        if self.config.see == "clean":
            return self.data.clean.batch(index.cpu())[0].to(self.where)
        return operators.shown(self.data.operator(index.cpu()), y)

    def _loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        x, denoiser = self.seen(batch), self.nets["denoiser"]
        t = times.draw(self.config.noise, denoiser.process, len(x), gen, self.where)
        eps = rows.randn(x.shape, gen, device=self.where)
        return edm(denoiser, denoiser.process, x, t, eps, None, self.config.sigma_data).mean(), {}

    def _sampler(self, averaged: Mapping[str, nn.Module]) -> Sampler:
        denoiser = averaged["denoiser"]
        assert isinstance(denoiser, Denoiser)
        return Sampler.many(denoiser, self.data.shape, (), self.where, self.recipe.measure)

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Samples and their Frechet distance to clean images."""
        sampler, seed = self._sampler(averaged), self.recipe.seed
        shown = sampler(100 if len(self.data.shape) == 3 else 2000, seed)
        return Result(self.judge.glance(sampler, seed) if self.judge else {}, {"prior": picture({"prior": shown})})

    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Figures of the prior, and the prior."""
        sampler = self._sampler(averaged)
        figures = self.judge(sampler, self.recipe.seed) if self.judge else {}
        return Result(figures, exports={"prior": prior_export(self.recipe, sampler.denoiser, self.data.shape)})
