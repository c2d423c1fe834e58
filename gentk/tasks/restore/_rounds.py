"""The torch side of `restore em`: a round draws x given y of many measurements by the denoiser of the round before,
then teaches the denoiser these draws. The first round's prior is Gaussian.

A round's draws are a function of the recipe, the round and `teacher`, the denoiser's average at the round's start: the
checkpoint holds that network, not the draws, and a resumed run makes the same ones again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gentk import nets, operators
from gentk.engine import ema, rng
from gentk.engine.generative import Judge, Sampler, picture
from gentk.engine.method import Batch, Metrics, Phase, Result
from gentk.losses.matching import edm
from gentk.operators import Operator
from gentk.operators.identity import Identity
from gentk.processes import rows, schedules, times
from gentk.processes.denoiser import Denoiser, at_sigma
from gentk.processes.grids import karras
from gentk.processes.models import fast_layout
from gentk.recipe.schema import VE
from gentk.restoring import Denoise, Noise, pigdm, reverse
from gentk.tasks.restore._corrupted import Corrupted, Moments, prior_export

_PROCESS = VE(name="ve")
_RHO = 7.0


class Em:
    """A `Trainable`: EDM's loss on the round's draws."""

    shardable = False  # a network here is copied from another between updates, whole

    def __init__(self, recipe: Any, where: torch.device) -> None:
        self.recipe, self.config, self.where = recipe, recipe.method, where
        self.held, test = Corrupted(recipe, "train", where), Corrupted(recipe, "test", where)
        self.data = None  # a step's batch comes of the round's draws
        torch.manual_seed(recipe.seed)  # the initial weights
        net = nets.build(recipe.net, shape=self.held.shape, classes=0)
        denoiser = Denoiser(fast_layout(net), schedules.build(_PROCESS), "edm", self.config.sigma_data).to(where)
        self.nets = {name: copy.deepcopy(denoiser).eval() for name in ("denoiser", "average", "teacher")}
        self.ema, self.optim = ("denoiser",), dict.fromkeys(self.nets, recipe.optim.denoiser)
        self.judge = Judge(recipe.measure, self.held.clean, test.clean, where) if recipe.measure else None
        self.pool, self.made = torch.empty(0), -1

    def phases(self, step: int) -> Iterator[Phase]:
        """One update of the denoiser; at the start of a round its draws first."""
        config, train = self.config, self.recipe.train
        number = step // config.every
        if step % config.every == 0:
            self.nets["teacher"].load_state_dict(self.nets["average"].state_dict())
        if number != self.made:
            self.pool, self.made = self.drawn(number), number
        yield Phase("denoiser", ("denoiser",), self._loss)
        beta = ema.decay(self.recipe.ema, train.batch, (step + 1) * train.batch)
        ema.update(self.nets["average"], self.nets["denoiser"], beta)

    def drawn(self, number: int) -> Tensor:
        """One draw of x given y for each measurement of round `number`: (pool, *shape)."""
        config, recipe = self.config, self.recipe
        gen = rng.generator(recipe.seed, "round", number)
        chosen = torch.randperm(len(self.held), generator=gen)[: config.pool]
        moments = Moments(self.held, recipe.sigma) if number == 0 else None
        found = []
        for index in torch.split(chosen, config.batch):
            y, op = self.held.batch(index)[0], self.held.operator(index)

            def noise(x: Tensor) -> Tensor:
                return torch.randn(x.shape, generator=gen).to(x)

            if moments is not None:
                found.append(gaussian(op, y, recipe.sigma, moments, noise))
            else:
                levels = levels_of(op, recipe.sigma, config.levels, config.sigma_min, config.sigma_max)
                found.append(expectation(self._teacher, op, y, recipe.sigma, levels, noise, solves=config.solves))
        return torch.cat(found)

    def _teacher(self, x: Tensor, s: float) -> Tensor:
        teacher = self.nets["teacher"].requires_grad_(False).eval()
        assert isinstance(teacher, Denoiser)
        return at_sigma(teacher, x, torch.tensor(s, dtype=torch.float64))

    def _loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        denoiser = self.nets["denoiser"]
        assert isinstance(denoiser, Denoiser)
        drawn = rows.randint(len(self.pool), (batch.n,), gen, device=gen.device)
        x = self.pool[drawn.to(self.pool.device)]
        t = times.draw(self.config.noise, denoiser.process, len(x), gen, self.where)
        eps = rows.randn(x.shape, gen, device=self.where)
        spread = self.pool.var(0).mean()
        return edm(denoiser, denoiser.process, x, t, eps, None, self.config.sigma_data).mean(), {"variance": spread}

    def _sampler(self, averaged: Mapping[str, nn.Module]) -> Sampler:
        denoiser = averaged["denoiser"]
        assert isinstance(denoiser, Denoiser)
        return Sampler.many(denoiser, self.held.shape, (), self.where, self.recipe.measure)

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Samples, the round's draws, and the samples' Frechet distance to clean images."""
        sampler, seed = self._sampler(averaged), self.recipe.seed
        few = min(100 if len(self.held.shape) == 3 else 2000, len(self.pool) or 100)
        panels = {"prior": sampler(few, seed)} | ({"draws": self.pool[:few].cpu()} if len(self.pool) else {})
        return Result(self.judge.glance(sampler, seed) if self.judge else {}, {"prior": picture(panels)})

    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Figures of the prior, and the prior."""
        sampler = self._sampler(averaged)
        figures = self.judge(sampler, self.recipe.seed) if self.judge else {}
        return Result(figures, exports={"prior": prior_export(self.recipe, sampler.denoiser, self.held.shape)})


def levels_of(op: Operator, sigma: float, n: int, low: float, high: float) -> Sequence[float]:
    """The draws' noise levels: EDM's grid of n steps, from sigma where y itself is a sample at that level."""
    top = sigma if isinstance(op, Identity) else high
    levels: list[float] = karras(n, min(low, 0.5 * top), top, _RHO).tolist()
    return levels


def expectation(
    denoise: Denoise, op: Operator, y: Tensor, sigma: float, levels: Sequence[float], noise: Noise, *, solves: int = 3
) -> Tensor:
    """A draw of x given each y under the denoiser's prior: (B, *shape). The E-step; a mean would not do."""
    x = levels[0] * noise(y.new_empty(len(y), *op.shape))
    if isinstance(op, Identity):
        return reverse.restore(denoise, op, y, sigma, x, levels, noise)
    return pigdm.restore(denoise, op, y, sigma, x, levels, noise, covariance=True, solves=solves).detach()


def gaussian(op: Operator, y: Tensor, sigma: float, moments: Moments, noise: Noise) -> Tensor:
    """A draw of x given each y under the prior of `moments`, exact (Matheron's rule): (B, *shape).

    With their covariance where they have one, else with one variance for all pixels.
    """
    shape = (len(y), *op.shape)
    white = noise(y.new_empty(shape))
    if moments.root is None:
        x = moments.mean + moments.r * white
        return x + operators.regularised(op, op.seen(y - op(x) - sigma * noise(y)), moments.r, sigma)
    root = moments.root
    x = moments.mean + (white.flatten(1) @ root.T).reshape(shape)
    gap = op.seen(y - op(x) - sigma * noise(y)).flatten(1)
    seen, c = op.seen(torch.ones_like(y)).flatten(1), root @ root.T
    shift = torch.empty_like(gap)
    for row, (kept, off) in enumerate(zip(seen > 0, gap, strict=True)):  # each mask has a system of its own size
        part = c[kept][:, kept] + sigma**2 * torch.eye(int(kept.sum())).to(c)
        shift[row] = c[:, kept] @ torch.linalg.solve(part, off[kept])
    return x + shift.reshape(shape)
