"""The torch side of `restore flowdiff`: variational EM of a conditional flow and a denoiser, each the other's teacher.

The flow's draws are the denoiser's data (theirs, not their means: means have too small a variance), and an average of
the denoiser is the flow's prior. Three networks learn or are kept: `flow`, `denoiser`, and `prior`, the flow's, which
no optimiser moves and every checkpoint holds. It is a short average: how fast it follows is how many rounds of EM a run
has. What is sampled, measured and exported is the loop's own longer average.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gentk import nets, operators
from gentk.data import to_uint8
from gentk.engine import ema, pictures, rng
from gentk.engine.generative import Judge, Sampler, picture, rounded
from gentk.engine.method import Batch, Export, Metrics, Phase, Result
from gentk.errors import RecipeError
from gentk.losses import ambient
from gentk.losses import flowdiff as terms
from gentk.metrics import posterior
from gentk.metrics.frechet import frechet
from gentk.metrics.paired import psnr
from gentk.metrics.points import sliced_wasserstein
from gentk.metrics.quality import all_of, moments
from gentk.nets import conditional_flow
from gentk.operators import Operator
from gentk.operators.identity import Identity
from gentk.processes import rows, schedules, times
from gentk.processes.denoiser import Denoiser, at_sigma
from gentk.processes.models import fast_layout
from gentk.recipe.schema import VE
from gentk.restoring.flow import Amortised, context_size
from gentk.tasks.restore._corrupted import Corrupted, Moments, data_header, prior_export
from gentk.tasks.restore._learning import identifiable

_SHOWN = 16
_PROCESS = VE(name="ve")


class FlowDiff:
    """A `Trainable`: warm-up of the flow, then of the denoiser, then both in turn, then the denoiser alone."""

    shardable = False  # a network here is copied from another between updates, whole

    def __init__(self, recipe: Any, where: torch.device) -> None:
        self.recipe, self.config, self.where = recipe, recipe.method, where
        config, steps = self.config, recipe.train.steps
        if config.warmup + config.prior_steps + config.finetune > steps:
            raise RecipeError(
                f"train.steps: {steps} are fewer than method.warmup, prior_steps and finetune together, "
                f"{config.warmup + config.prior_steps + config.finetune}: the two would never meet"
            )
        self.data, self.test = Corrupted(recipe, "train", where), Corrupted(recipe, "test", where)
        shape = self.data.shape
        self.moments = Moments(self.data, recipe.sigma)
        torch.manual_seed(recipe.seed)  # the initial weights
        net = nets.build(recipe.net, shape=shape, classes=0)
        denoiser = Denoiser(fast_layout(net), schedules.build(_PROCESS), "edm", config.sigma_data).to(where)
        flow = conditional_flow.build(recipe.flow, shape=shape, context=context_size(shape)).to(where)
        self.nets = {"flow": flow, "denoiser": denoiser, "prior": copy.deepcopy(denoiser).eval()}
        self.ema = ("flow", "denoiser")
        self.optim = {"flow": recipe.optim.flow, "denoiser": recipe.optim.denoiser, "prior": recipe.optim.denoiser}
        clean = self.data.clean
        self.judge = Judge(recipe.measure, clean, self.test.clean, where) if recipe.measure else None

    def phases(self, step: int) -> Iterator[Phase]:
        """The updates of one step; after the denoiser's, the flow's prior follows it."""
        config, recipe = self.config, self.recipe
        met = config.warmup + config.prior_steps
        last = step >= recipe.train.steps - config.finetune
        if step >= config.warmup:
            yield Phase("denoiser", ("denoiser",), self._denoising)
            batch = recipe.train.batch
            beta = ema.decay(config.follow, batch, (step + 1 - config.warmup) * batch)
            ema.update(self.nets["prior"], self.nets["denoiser"], beta)
        if step < config.warmup:
            yield Phase("warmup", ("flow",), self._fitting_gauss)
        elif step >= met and not last:
            yield Phase("flow", ("flow",), self._fitting)

    def draw(self, flow: nn.Module, op: Operator, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """x = G(z; y) (B, *shape) and log|det dx/dz| (B,), in float32 whatever the denoiser runs in (trap 9)."""
        with torch.autocast(self.where.type, enabled=False):
            return Amortised(flow, self.moments.mean, self.moments.deviation).draw(op, y, self.recipe.sigma, z)

    def _drawn(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Tensor, Operator, Tensor]:
        y, index = batch.x, batch.y
        assert y is not None
        assert index is not None
        op = self.data.operator(index.cpu())
        z = rows.randn((len(y), *self.data.shape), gen, device=self.where)
        return *self.draw(self.nets["flow"], op, y, z), op, y

    def _denoising(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        """Score matching on the flow's draws, which does not move the flow; and on y itself at levels above its own."""
        with torch.no_grad():
            x, _, op, y = self._drawn(batch, gen)
        denoiser, config = self.nets["denoiser"], self.config
        assert isinstance(denoiser, Denoiser)
        t = times.draw(config.noise, denoiser.process, len(x), gen, self.where)
        eps = rows.randn(x.shape, gen, device=self.where)
        sigma = torch.zeros_like(t)  # the noise that a row has already: a draw has none
        if config.measured and isinstance(op, Identity):
            sigma = torch.where(t > self.recipe.sigma, self.recipe.sigma, 0.0)
            x = torch.where((sigma > 0).reshape(-1, *[1] * (x.dim() - 1)), y, x)
        every, more = torch.ones_like(x), (t.square() - sigma.square()).sqrt()
        return ambient.further(self._told, x, every, every, more, eps, sigma, config.sigma_data).mean(), {}

    def _told(self, x: Tensor, kept: Tensor, t: Tensor) -> Tensor:
        denoiser = self.nets["denoiser"]
        assert isinstance(denoiser, Denoiser)
        return at_sigma(denoiser, x, t)

    def _fitting_gauss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        x, logdet, op, y = self._drawn(batch, gen)
        moments = self.moments
        whiten = moments.whiten if self.config.correlated else None
        whiten = moments.variance.rsqrt() if whiten is None else whiten
        return self._objective(op, y, x, terms.gaussian_energy(x, moments.mean, whiten), logdet)

    def _fitting(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        x, logdet, op, y = self._drawn(batch, gen)
        config = self.config
        many = x.repeat_interleave(config.repeats, 0)
        s, eps = terms.probes(many, config.repeats, config.sigma_min, config.sigma_max, gen)
        reach = math.log(config.sigma_max / config.sigma_min)
        bound = terms.energy(self._prior, many, s, eps, reach, through=config.through)
        return self._objective(op, y, x, bound.reshape(len(x), config.repeats).mean(1), logdet)

    def _prior(self, x: Tensor, s: Tensor) -> Tensor:
        prior = self.nets["prior"]
        assert isinstance(prior, Denoiser)
        return at_sigma(prior, x, s)

    def _objective(self, op: Operator, y: Tensor, x: Tensor, prior: Tensor, logdet: Tensor) -> tuple[Tensor, Metrics]:
        """The weighted terms over the number of pixels, and each by itself for the log."""
        config, pixels = self.config, x[0].numel()
        data = terms.misfit(y, op(x), self.recipe.sigma)
        whole = config.lambda_data * data + config.lambda_prior * prior - config.lambda_entropy * logdet
        parts = {"data": data, "prior": prior, "entropy": logdet}
        return whole.mean() / pixels, {name: part.mean() / pixels for name, part in parts.items()}

    # what is shown and kept

    def _sampler(self, averaged: Mapping[str, nn.Module]) -> Sampler:
        prior = averaged["denoiser"]
        assert isinstance(prior, Denoiser)
        return Sampler.many(prior, self.data.shape, (), self.where, self.recipe.measure)

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Samples of the prior, held-out measurements restored, and few figures of both."""
        sampler, seed, held = self._sampler(averaged), self.recipe.seed, self.recipe.held
        shown = sampler(100 if len(self.data.shape) == 3 else 2000, seed)
        figures = self.judge.glance(sampler, seed) if self.judge else {}
        pictured = {"prior": picture({"prior": shown})}
        if held.preview:
            more, panels = self._restored(averaged["flow"], held.preview)
            figures, pictured = figures | more, pictured | panels
        return Result(figures, pictured)

    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Figures of prior and flow, beside those of the measurements themselves; both networks."""
        figures, panels = self._restored(averaged["flow"], self.recipe.held.n)
        sampler = self._sampler(averaged)
        if self.judge:
            figures |= self.judge(sampler, self.recipe.seed)
            y, op, _ = self.data.first(self.judge.section.n)
            if op.measured == op.shape:
                real = moments(self.judge.extract(all_of(self.data.clean)))
                figures["fd_measured"] = frechet(real, moments(self.judge.extract(rounded(y.cpu()))))
        if len(self.data.shape) == 1:
            y, clean = self.data.first(5000)[0].cpu(), self.test.first(5000)[2].cpu()
            figures["sw1"] = sliced_wasserstein(sampler(5000, self.recipe.seed), clean, 1)
            figures["sw1_measured"] = sliced_wasserstein(y, clean, 1)
        seen = identifiable(self.data)
        figures |= {"never_seen": seen.never, "pairs_never_seen": seen.pairs, "not_measured": seen.zero}
        figures = {name: value for name, value in figures.items() if math.isfinite(value)}
        prior = prior_export(self.recipe, sampler.denoiser, self.data.shape)
        return Result(figures, panels, {"flow": self._flow_export(averaged["flow"]), "prior": prior})

    @torch.no_grad()  # a measurement
    def _restored(self, flow: nn.Module, n: int) -> tuple[dict[str, float], dict[str, Any]]:
        """Figures of draws for held-out measurements, and panels. `flow` is the averaged one."""
        k = self.recipe.held.draws
        y, op, truth = self.test.first(n)
        many = self.test.operator(torch.arange(len(y)).repeat_interleave(k))
        z = rng.noise(self.recipe.seed, 0, len(y) * k, self.data.shape, purpose="posterior").to(self.where)
        begun = time.perf_counter()
        draws = self.draw(flow, many, y.repeat_interleave(k, 0), z)[0].reshape(len(y), k, *self.data.shape).cpu()
        seconds = time.perf_counter() - begun
        truth, view = truth.cpu(), operators.shown(op, y).cpu()
        mean, std = posterior.mean_and_std(draws)
        figures = {
            "rmse_mean": float((mean - truth).square().mean().sqrt()),
            "rmse_draw": float((draws[:, 0] - truth).square().mean().sqrt()),
            "rmse_measured": float((view - truth).square().mean().sqrt()),
            "coverage_90": posterior.coverage(truth, draws),
            "z_rms": posterior.z_rms(truth, draws),
            "std": float(std.mean()),
            "ms_per_draw": 1000 * seconds / (len(y) * k),
        }
        figures = {name: value for name, value in figures.items() if math.isfinite(value)}
        if truth.dim() != 4:
            return figures, {"restored": pictures.scatter({"truth": truth, "measured": view, "draws": draws[:, 0]})}
        for name, x in {"mean": mean, "draw": draws[:, 0], "measured": view}.items():
            figures[f"psnr_{name}"] = float(psnr(x.clamp(-1, 1), truth, data_range=2).mean())
        panels = {"truth": truth, "measured": view, "mean of draws": mean, "one draw": draws[:, 0]}
        shown = {name: to_uint8(x[:_SHOWN]) for name, x in panels.items()}
        shown["deviation"] = (255 * std[:_SHOWN]).round().clamp(0, 255).to(torch.uint8)
        return figures, {"restored": pictures.side_by_side(shown)}

    def _flow_export(self, flow: nn.Module) -> Export:
        header = {
            "kind": "restorer",
            "net": self.recipe.flow.model_dump(mode="json"),
            "context": context_size(self.data.shape),
            "operator": self.recipe.operator.model_dump(mode="json"),
            "sigma": self.recipe.sigma,
            "mean": self.moments.mean.flatten().tolist(),
            "r": r.flatten().tolist() if isinstance(r := self.moments.deviation, Tensor) else r,
            "data": data_header(self.recipe, self.data.shape),
            "licence": "Apache-2.0",
        }
        return Export(flow, header)
