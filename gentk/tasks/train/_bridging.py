"""The torch side of `train vsdm` for points and images: stages of score matching, each begun by a step in A."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gentk import data, nets
from gentk.engine import rng
from gentk.engine.generative import Judge, picture
from gentk.engine.linear import LinearSampler, backward
from gentk.engine.method import Batch, Export, Metrics, Phase, Result
from gentk.engine.paths import followed, paths_picture, straightness
from gentk.errors import RecipeError
from gentk.losses import bridge
from gentk.processes import rows, times
from gentk.processes.linear_denoiser import LinearDenoiser
from gentk.processes.models import fast_layout

_SHOWN = 100  # samples in a picture: ten rows of ten classes
_DESCENT = 10  # gradient steps of `update: gradient`


class Bridging:
    """A `Trainable`: one denoiser of a linear process, one phase, and steps in its A between updates."""

    def __init__(self, recipe: Any, where: torch.device) -> None:
        self.recipe, self.config, self.where = recipe, recipe.method, where
        if recipe.net.name == "small-cnn":
            raise RecipeError("net.name: `small-cnn` is a classifier, a denoiser needs `unet` or `mlp`")
        self.data = data.load(recipe.data, "train")
        self.test = data.load(recipe.data, "test")
        torch.manual_seed(recipe.seed)  # the initial weights
        net = nets.build(recipe.net, shape=self.data.shape, classes=self.data.classes)
        x, y = self.data.batch(torch.arange(len(self.data)))
        denoiser = linear_denoiser(fast_layout(net), self.config, x, y, self.data.classes)
        self.nets = {"denoiser": denoiser.to(where)}
        self.ema, self.optim = ("denoiser",), {"denoiser": recipe.optim}
        # a Judge measures whatever draws n samples of a seed and says its NFE
        self.judge: Any = Judge(recipe.measure, self.data, self.test, where) if recipe.measure else None
        self.cycle = tuple(range(self.data.classes))

    def phases(self, step: int) -> Iterator[Phase]:
        """The step in A where a stage begins, then one update of the score."""
        stage, at = divmod(step, self.config.stage)
        if at == 0 and 1 <= stage <= self.config.stages:
            gen = rng.generator(self.recipe.seed, step, "paths")
            cond = None
            if self.cycle:
                cond = (torch.arange(self.config.paths) % len(self.cycle)).to(self.where)
            improve(self.nets["denoiser"], self.config, stage, gen, cond)
        yield Phase("score", ("denoiser",), self._loss)

    def _loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        x, y = batch.x, batch.y
        assert x is not None  # the loop supplies data to a method that has some
        if y is not None:
            hidden = rows.rand((batch.n,), gen, device=self.where) < self.config.label_dropout
            y = torch.where(hidden, self.data.classes, y)  # the row after the last class means "no label"
        return matching(self.nets["denoiser"], x, y, self.config, gen)

    def _sampler(self, averaged: Mapping[str, nn.Module]) -> LinearSampler:
        denoiser = averaged["denoiser"]
        assert isinstance(denoiser, LinearDenoiser)
        return LinearSampler.of(denoiser, self.cycle, self.where, self.config.prior, self.recipe.measure)

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Samples of the average, from the same noise at every step, their figures, and the rates of D."""
        sampler, seed = self._sampler(averaged), self.recipe.seed
        shown = sampler(_SHOWN if len(self.data.shape) == 3 else 2000, seed)
        figures = self.judge.glance(sampler, seed) if self.judge else {}
        return Result(figures | rates(sampler.denoiser), pictures={"samples": picture({"samples": shown})})

    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Figures of the average and the average itself; of points also the spread and the paths of the samples."""
        sampler, seed = self._sampler(averaged), self.recipe.seed
        figures = self.judge(sampler, seed) if self.judge else {}
        pictures = {}
        if len(self.data.shape) == 1:
            x, path = followed(lambda first, n, trace: sampler.part(first, n, seed, trace), 2000)
            figures |= straightness(path)
            ratio = x.std(0) / self.data.x.float().std(0)
            figures |= {f"spread_{i}": float(r) for i, r in enumerate(ratio)}
            if self.data.shape == (2,):
                pictures["paths"] = paths_picture({"paths": path})
        data_of = {
            "name": self.data.name,
            "shape": self.data.shape,
            "classes": self.data.classes,
            "section": self.recipe.data.model_dump(mode="json"),
        }
        header = header_of(self.recipe, sampler.denoiser, data_of)
        figures |= rates(sampler.denoiser)
        return Result(figures, pictures=pictures, exports={"denoiser": Export(sampler.denoiser, header)})


def linear_denoiser(
    net: nn.Module, config: Any, x: Tensor, labels: Tensor | None = None, classes: int = 0
) -> LinearDenoiser:
    """The denoiser of a method's section for data x (N, *shape), with the A that it starts from."""
    denoiser = LinearDenoiser(net, config.betas, config.drift, tuple(x.shape[1:]), config.spread, classes)
    denoiser.learn_data(x, labels if classes else None)
    if config.start == "gaussian":
        denoiser.strength[:] = bridge.gaussian(denoiser.variances(), denoiser.process, config.zeta)
        _warn(denoiser, 0)
    return denoiser


def header_of(recipe: Any, denoiser: LinearDenoiser, data_of: dict[str, Any]) -> dict[str, Any]:
    """What a model's file says of it."""
    return {
        "kind": "bridge",
        "net": recipe.net.model_dump(mode="json"),
        "process": denoiser.describe(),
        "prior": recipe.method.prior,
        "label_dropout": recipe.method.label_dropout,
        "data": data_of,
        "licence": "Apache-2.0",
    }


def matching(
    denoiser: LinearDenoiser, x: Tensor, cond: Tensor | None, config: Any, gen: torch.Generator
) -> tuple[Tensor, Metrics]:
    """EDM's weighted denoising error in coordinates, |F - its target|^2 / d, which is about 1 without a network.

    x (B, *shape) clean. In each coordinate it is the error of x0 over (sigma sd / n)^2, so its minimiser at each time
    is E[x0 | x_t] whatever A is: the loss needs no simulation.
    """
    process = denoiser.process
    t = times.draw(config.noise, process, len(x), gen, x.device)
    eps = rows.randn(x.shape, gen, device=x.device)
    z0 = denoiser.encode(x)
    z = denoiser.noised(z0, t, denoiser.to_z(eps.flatten(1)))
    alpha, sigma, sd = denoiser.levels(t)
    n = (alpha**2 * sd**2 + sigma**2).sqrt()
    # (z0 - skip z) / out with z = alpha z0 + sigma eps, in which the large terms are gone
    target = (sigma / (sd * n)).to(z0) * z0 - (alpha * sd / n / sigma).to(z0) * (z - alpha.to(z0) * z0)
    error = (denoiser.raw(z, t, cond) - target).square().sum(1) / denoiser.dim
    return error.mean(), {}


def improve(denoiser: Any, config: Any, stage: int, gen: torch.Generator, cond: Tensor | None = None) -> None:
    """The step in A of stage `stage` from 1: trajectories, the least A for them, stage^-damping of the way to it."""
    was = denoiser.training
    denoiser.eval()
    moments = backward(denoiser, n=config.paths, steps=config.path_steps, gen=gen, cond=cond)
    denoiser.train(was)
    share = float(stage**-config.damping)
    old = denoiser.strength.cpu()
    if denoiser.drift.form == "full":
        matrices = torch.stack([denoiser.matrix(k).cpu() for k in range(len(old))])
        whole = _least(config, matrices.mean(0), moments)
        blended = (1 - share) * matrices.mean(0) + share * whole
        basis = torch.linalg.eigh(blended)[1]
        # what each cell needs, in the new basis
        inside = bridge.Moments(
            _diagonals(moments.second, basis), _diagonals(moments.cross, basis), moments.weight, moments.counts
        )
        kept = _diagonals(matrices, basis)
        if len(old) == 1:
            new = (basis.T @ blended @ basis).diagonal()[None]
        else:
            new = (1 - share) * kept + share * _least(config, kept, inside)
        denoiser.basis.copy_(basis)
    else:
        new = (1 - share) * old + share * _least(config, old, moments)
    denoiser.strength.copy_(new)
    _warn(denoiser, stage)


def _diagonals(matrices: Tensor, basis: Tensor) -> Tensor:
    return torch.einsum("ji,kjl,li->ki", basis, matrices, basis)


def _least(config: Any, a: Tensor, moments: bridge.Moments) -> Tensor:
    if config.update == "gradient":
        return bridge.descend(a, moments, config.zeta, steps=_DESCENT, rate=0.5)
    if moments.second.dim() == 3:
        return bridge.symmetric(moments, config.zeta)
    return bridge.diagonal(moments, config.zeta)


def rates(denoiser: LinearDenoiser) -> dict[str, float]:
    """The least and the greatest D_i over cells and coordinates: 1 where A = 0."""
    d = 1 - 2 * denoiser.strength
    return {"rate_least": float(d.min()), "rate_greatest": float(d.max())}


def _warn(denoiser: LinearDenoiser, stage: int) -> None:
    """Says once a stage which coordinate of D has a rate of 0 or less: legal, but its noise grows without bound."""
    d = 1 - 2 * denoiser.strength
    if float(d.min()) <= 0:
        cell, group = divmod(int(d.argmin()), d.shape[1])
        at = f"coordinate {group}" + (f", cell {cell}" if len(d) > 1 else "")
        print(
            f"warning: step {stage} in A: D has the eigenvalue {float(d.min()):.3g} ({at}), whose noise grows without "
            "bound; raise method.zeta towards 1, or betas.beta_max",
            file=sys.stderr,
        )
