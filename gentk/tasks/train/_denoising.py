"""The torch side of `train denoiser` and `train flow`: the loss and the pairing of data and noise are what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gentk import data, nets
from gentk.engine.generative import Judge, Sampler, picture
from gentk.engine.method import Batch, Export, Metrics, Phase, Result
from gentk.errors import RecipeError
from gentk.losses.matching import Matching
from gentk.processes import rows, schedules, times
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import fast_layout

Pair = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x0, x1, labels) -> x1 in the order in which its rows go with those of x0."""

_SHOWN = 100  # samples in a picture: ten rows of ten classes


class Denoising:
    """A `Trainable`: one network, one phase, a matching loss on data with labels dropped at random."""

    def __init__(self, recipe: Any, where: torch.device, loss: Matching, pair: Pair | None = None) -> None:
        self.recipe, self.config = recipe, recipe.method
        self.loss, self.pair = loss, pair
        self.data = data.load(recipe.data, "train")
        self.test = data.load(recipe.data, "test")
        torch.manual_seed(recipe.seed)  # the initial weights
        if recipe.net.name == "small-cnn":
            raise RecipeError("net.name: `small-cnn` is a classifier, a denoiser needs `unet` or `mlp`")
        net = nets.build(recipe.net, shape=self.data.shape, classes=self.data.classes)
        process = schedules.build(self.config.process)
        denoiser = Denoiser(fast_layout(net), process, self.config.predicts, self.config.sigma_data).to(where)
        self.nets = {"denoiser": denoiser}
        self.ema, self.optim, self.where = ("denoiser",), {"denoiser": recipe.optim}, where
        self.judge = Judge(recipe.measure, self.data, self.test, where) if recipe.measure else None
        self.cycle = tuple(range(self.data.classes))

    def phases(self, step: int) -> Iterator[Phase]:
        """One update of the denoiser."""
        yield Phase("denoiser", ("denoiser",), self._loss)

    def _loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        x, y, config = batch.x, batch.y, self.config
        assert x is not None  # the loop supplies data to a method that has some
        denoiser = self.nets["denoiser"]
        t = times.draw(config.noise, denoiser.process, batch.n, gen, self.where)
        eps = rows.randn(x.shape, gen, device=self.where)
        if self.pair is not None:  # by all rows of the micro-batch, whichever process has them
            eps = batch.mine(self.pair(batch.whole(x), batch.whole(eps), None if y is None else batch.whole(y)))
        if y is not None:
            hidden = rows.rand((batch.n,), gen, device=self.where) < config.label_dropout
            y = torch.where(hidden, self.data.classes, y)  # the row after the last class means "no label"
        return self.loss(denoiser, denoiser.process, x, t, eps, y, config.sigma_data).mean(), {}

    def _sampler(self, averaged: Mapping[str, nn.Module]) -> Sampler:
        denoiser = averaged["denoiser"]
        assert isinstance(denoiser, Denoiser)
        return Sampler.many(denoiser, self.data.shape, self.cycle, self.where, self.recipe.measure)

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Samples of the average, from the same noise at every step, and their figures."""
        sampler, seed = self._sampler(averaged), self.recipe.seed
        shown = sampler(_SHOWN if len(self.data.shape) == 3 else 2000, seed)
        figures = self.judge.glance(sampler, seed) if self.judge else {}
        return Result(figures, pictures={"samples": picture({"samples": shown})})

    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Figures of the average and the average itself."""
        config, sampler = self.config, self._sampler(averaged)
        figures = self.judge(sampler, self.recipe.seed) if self.judge else {}
        header = {
            "kind": "denoiser",
            "net": self.recipe.net.model_dump(mode="json"),
            "process": config.process.model_dump(mode="json"),
            "predicts": config.predicts,
            "sigma_data": config.sigma_data,
            "label_dropout": config.label_dropout,
            "data": {
                "name": self.data.name,
                "shape": self.data.shape,
                "classes": self.data.classes,
                "section": self.recipe.data.model_dump(mode="json"),
            },
            "licence": "Apache-2.0",
        }
        return Result(figures, exports={"denoiser": Export(sampler.denoiser.net, header)})
