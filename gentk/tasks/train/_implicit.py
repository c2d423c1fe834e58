"""The torch side of implicit samplers: coordinates, the two networks in turn, the wait for a score that lags.

symbol   meaning
y        coordinates in which the target is roughly N(0, I): x = middle + root y
lam      the target in y is lam log_q + (1 - lam) log N(0, I); 0 at the start, where the sampler is exact, then 1
S        the score network, of the draws noised by sigma
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gentk.engine import rng
from gentk.engine.method import Batch, Export, Metrics, Phase, Result
from gentk.errors import RecipeError, RunFailed
from gentk.losses import implicit
from gentk.losses.implicit import Field
from gentk.nets.implicit import Sampler, Score
from gentk.processes import rows
from gentk.solvers import laplace
from gentk.targets import Density, density, probe
from gentk.targets.density import LogProb
from gentk.tasks.train._sampled import Judge

_FAR = 1000.0  # units of y: half of the draws beyond it are no sampler of anything
_LONGEST = 3.0  # times the noise's own length: draws that fit the target have no longer scores but once in thousands
_CUT = 0.2  # share of forces that may be cut
_NOISE = (0.05, 0.3)  # of the draws' width: below the score is noise, above the sampler too narrow by 5 %
_COUNTED = 2000  # draws
_ERRORS = 2.0  # standard errors that a violation must exceed the allowance by: heavy tails make noise


@dataclass(frozen=True)
class Push:
    """What a force is made of: draws y (B, D) without a graph, both scores, sigma, and the part of training done."""

    score: Field
    target: Field
    y: Tensor
    sigma: float
    done: float


Force = Callable[[Push, torch.Generator], Tensor]
"""What each draw is pushed along, downhill: (B, D)."""


def fisher_force(config: Any) -> Force:
    """KL's force, and Fisher's after `kl_first` of the training."""

    def force(push: Push, gen: torch.Generator) -> Tensor:
        score, target, y = push.score, push.target, push.y
        if push.done < config.kl_first:
            return implicit.kl(score, target, y)
        if config.form == "denoising":
            eps = rows.randn(y.shape, gen, device=y.device)
            sharp = implicit.force(
                lambda at: implicit.denoising_fisher(score, target, at, eps, push.sigma), y + push.sigma * eps
            )
        else:
            signs = None
            if config.divergence == "hutchinson":
                signs = rows.randint(2, y.shape, gen, device=y.device).to(y) * 2 - 1
            sharp = implicit.force(lambda at: implicit.fisher(score, target, at, signs), y)
        if not config.blend:
            return sharp
        mixed: Tensor = config.blend * implicit.kl(score, target, y) + (1 - config.blend) * sharp
        return mixed

    return force


class Implicit:
    """A `Trainable`: `score_steps` updates of the score, then one of the sampler unless the score lags behind it."""

    def __init__(self, recipe: Any, where: torch.device, force: Force) -> None:
        self.recipe, self.config, self.where, self.force = recipe, recipe.method, where, force
        self.density = density(recipe.target, where)
        self.smooth = getattr(recipe.method, "smooth", False)
        self._check_smooth()
        middle, root = coordinates(self.density, recipe.method)
        torch.manual_seed(recipe.seed)  # the initial weights
        dim = self.density.dim
        sampler = Sampler(recipe.net, dim=dim, middle=middle, root=root).to(where)
        lead = self._lead if recipe.method.lead else None
        score = Score(recipe.score_net, dim=dim, sigma=recipe.method.sigma, lead=lead).to(where)
        self.sampler, self.score = sampler, score
        self.nets: dict[str, nn.Module] = {"sampler": sampler, "score": score}
        self.ema = ("sampler",)
        self.optim = {"sampler": recipe.optim.sampler, "score": recipe.optim.score}
        self.data = None  # the density is all there is
        gen = rng.generator(recipe.seed, "probe", device=where)
        base = sampler.place(torch.randn(256, dim, generator=gen, device=where))
        spread = float(sampler.root.double().square().sum().div(dim).sqrt())
        probe.check(self.density, base, scale=spread, gen=gen)
        self.judge = Judge(recipe, self.density, sampler, where) if recipe.measure else None
        self._step = 0  # whose noise the lead has
        self._clock: tuple[float, int] | None = None  # when this process began, and at which step
        self._apart = 0.0  # seconds of it that were not training

    def _check_smooth(self) -> None:
        if not self.smooth:
            return
        of, config = self.density, self.config
        if of.noised is None or of.levels is None:
            raise RecipeError(
                f"method.smooth: `{of.name}` is not known with noise added", hint="an energy of several levels"
            )
        unit = config.scale * of.spread
        ends = [unit * sigma for sigma in (config.sigma, config.sigma_end or config.sigma)]
        if config.anneal or not of.levels[0] <= min(ends) <= max(ends) <= of.levels[1]:
            raise RecipeError(
                f"method.smooth: noise of {ends[0]:.3g} to {ends[1]:.3g} must lie within the energy's levels, "
                f"{of.levels[0]:g} to {of.levels[1]:g}, and without a bridge",
                hint="--set method.anneal=0, and other method.sigma and sigma_end",
            )

    def phases(self, step: int) -> Iterator[Phase]:
        """Updates of the score, in rounds until Stein's identity holds for it, then of the sampler; or no more."""
        self._step = step
        if self._clock is None:
            self._clock = (time.monotonic(), step)
        lags, k = True, 0
        for _ in range(self.config.lag_rounds):
            for _ in range(self.config.score_steps):
                k += 1
                yield Phase("score", ("score",), self._score_loss(step, k))
            lags = self._lags(step, k)
            if not lags:
                break
        self.score.held[0] += int(lags)
        self.score.held[1] = int(lags)
        if not lags:
            yield Phase("sampler", ("sampler",), self._sampler_loss(step))

    def done(self, step: int) -> float:
        """The part of the training that lies before a step, in [0, 1)."""
        return step / int(self.recipe.train.steps)

    def lam(self, step: int) -> float:
        """The target's share in the bridge: strictly increasing to 1, which `anneal` of the training reaches."""
        if not self.config.anneal:
            return 1.0
        return min(1.0, (step + 1) / max(1.0, float(self.config.anneal) * int(self.recipe.train.steps)))

    def sigma(self, step: int) -> float:
        """The noise of the score's denoising."""
        first, last, anneal = self.config.sigma, self.config.sigma_end, self.config.anneal
        if last is None:
            return float(first)
        part = max(0.0, (self.done(step) - anneal) / (1 - anneal))
        return float(first * (last / first) ** part)

    def target(self, step: int, gen: torch.Generator) -> Field:
        """The bridge's score in y, (B, D) -> (B, D)."""
        lam, place = self.lam(step), self.sampler.place
        log_q: LogProb = self.density.log_prob
        if self.density.estimate is not None:
            log_q = self.density.estimate(rows.common(gen))  # one estimate for all rows
        if self.smooth:
            log_q = self._noised(step)

        def log_prob(y: Tensor) -> Tensor:
            value = lam * log_q(place(y))
            return value if lam == 1 else value - (1 - lam) * 0.5 * y.square().sum(1)

        return implicit.score_of(log_prob)

    def _lead(self, y: Tensor) -> Tensor:
        """The target's score in y (B, D); rows far longer than what they are to explain, -eps / sigma, are cut.

        With `smooth` it is the target's with as much noise as the draws have at this step, and the noise cancels in the
        difference of the two.
        """
        log_q: LogProb = self.density.log_prob
        sigma = self.config.sigma
        if self.smooth:
            log_q, sigma = self._noised(self._step), self.sigma(self._step)
        own = implicit.score_of(lambda at: log_q(self.sampler.place(at)))(y)
        return implicit.clipped(own, _LONGEST * math.sqrt(self.density.dim) / sigma)[0]

    def _noised(self, step: int) -> LogProb:
        assert self.density.noised is not None
        return self.density.noised(self.sigma(step) * float(self.sampler.root[0]))

    def _draws(self, n: int, gen: torch.Generator) -> Tensor:
        z = rows.randn((n, self.density.dim), gen, device=self.where)
        return self.sampler.coordinates(z)

    def _score_loss(self, step: int, k: int) -> Callable[[Batch, torch.Generator], tuple[Tensor, Metrics]]:
        sigma = self.sigma(step)

        def loss(batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
            gen = _own(gen, k)
            with torch.no_grad():  # the score fits the sampler's draws as data; the sampler does not move here
                y = self._draws(batch.n, gen)
            eps = rows.randn(y.shape, gen, device=self.where)
            # each noise with its negative: of eps . S(y + sigma eps) only the change of S over the noise is left, so
            # that the gradient's own noise does not grow as sigma falls
            value = implicit.dsm(self.score, torch.cat([y, y]), torch.cat([eps, -eps]), sigma).mean()
            figures = {"waited": self.score.held[1].float()}
            return value, figures if self.score.lead is None else figures | {"lead": self.score.share.detach()[0]}

        return loss

    def _sampler_loss(self, step: int) -> Callable[[Batch, torch.Generator], tuple[Tensor, Metrics]]:
        def loss(batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
            y = self._draws(batch.n, gen)
            self._guard(step, y.detach())
            at, sigma = y.detach(), self.sigma(step)
            if self.smooth:  # KL of the two noised laws: its gradient in y is that in y + sigma eps
                at = at + sigma * rows.randn(at.shape, gen, device=self.where)
            push = Push(self.score, self.target(step, gen), at, sigma, self.done(step))
            along, cut = implicit.clipped(self.force(push, gen), self.config.clip)
            if self.lam(step) == 1:  # what the bridge cuts says nothing of the end
                self.score.cut += torch.stack([cut.double().mean(), cut.new_ones((), dtype=torch.float64)])
            figures = {"force": along.square().sum(1).mean().sqrt(), "clipped": cut.float().mean()}
            return implicit.pushed(y, along).mean(), figures | {"lam": torch.tensor(self.lam(step))}

        return loss

    @torch.no_grad()  # only looked at
    def _lags(self, step: int, k: int) -> bool:
        """Whether Stein's identity is violated on fresh draws, beyond the allowance and what chance explains."""
        if self.config.lag is None:
            return False
        gen = rng.generator(self.recipe.seed, step, "stein", k, device=self.where)
        y = self._draws(self.config.lag_draws, gen)
        y = y + self.sigma(step) * torch.randn(y.shape, generator=gen, device=self.where)
        trace, drift = implicit.stein(self.score, y)
        d, n = y.shape[1], len(y)
        allowed = self.config.lag * d + _ERRORS * trace.std() / math.sqrt(n)
        # E|mean of S|^2 is tr cov(S) / n by chance alone; unit variance in each coordinate is what y should have
        drifted = drift.mean(0).square().sum() > (self.config.lag**2) * d + _ERRORS**2 * drift.var(0).sum() / n
        return bool(trace.mean().abs() > allowed) or bool(drifted)

    def _guard(self, step: int, y: Tensor) -> None:
        radius = float(y.square().mean(1).sqrt().median())
        if not radius < _FAR:
            raise RunFailed(
                f"step {step}: half of the draws are {radius:.3g} units from the middle: the sampler has diverged",
                hint="lower optim.sampler.lr, raise method.score_steps, or set method.clip",
            )

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Draws of the average, their figures, and how often the sampler has waited."""
        begun = time.monotonic()
        sampler = averaged["sampler"]
        assert isinstance(sampler, Sampler)
        result = self.judge.glance(sampler) if self.judge else Result()
        self._apart += time.monotonic() - begun
        return result

    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        """The figures of the average, and the average."""
        sampler = averaged["sampler"]
        assert isinstance(sampler, Sampler)
        steps = self.recipe.train.steps
        seconds = math.nan
        if self._clock is not None and steps > self._clock[1]:  # of this process, for all steps
            seconds = (time.monotonic() - self._clock[0] - self._apart) * steps / (steps - self._clock[1])
        figures, pictures = self.judge.verdict(sampler, seconds) if self.judge else ({}, {})
        figures["waited"] = float(self.score.held[0]) / steps
        figures |= self._doubts(sampler)
        header = {
            "kind": "sampler",
            "net": self.recipe.net.model_dump(mode="json"),
            "data": {"name": self.density.name, "shape": self.density.shape, "classes": 0},
            "target": self.recipe.target.model_dump(mode="json"),
            "whitened": sampler.root.dim() == 2,
            "licence": "Apache-2.0",
        }
        return Result(figures, pictures, {"sampler": Export(sampler, header)})

    @torch.no_grad()  # only looked at
    def _doubts(self, sampler: Sampler) -> dict[str, float]:
        """The share of forces cut after the bridge, and the noise over the narrowest direction of the draws.

        Warns where one of them is bad. A bent ridge is wide in every straight direction: its own width is not seen.
        """
        gen = rng.generator(self.recipe.seed, "width", device=self.where)
        y = sampler.coordinates(torch.randn(_COUNTED, self.density.dim, generator=gen, device=self.where))
        cov = y.double().T.cov().reshape(self.density.dim, -1)  # of one coordinate it comes as a number
        narrowest = float(torch.linalg.eigvalsh(cov)[0].clamp(min=0).sqrt())
        ratio = self.sigma(int(self.recipe.train.steps) - 1) / max(narrowest, 1e-30)
        share = float(self.score.cut[0] / self.score.cut[1].clamp(min=1))
        if share > _CUT:
            _warn(f"{share:.0%} of the forces were cut to method.clip, so what was descended is another loss: raise it")
        if ratio > _NOISE[1]:
            _warn(
                f"the score's noise is at the end {ratio:.2g} of the draws' narrowest direction, too narrow: sigma_end"
            )
        if ratio < _NOISE[0] and not self.config.lead:  # which leaves little to be learned from noise
            _warn(f"the score's noise is at the end {ratio:.2g} of the draws' narrowest direction: it is all noise")
        return {"clipped": share, "sigma_over_width": ratio}


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def _own(gen: torch.Generator, k: int) -> torch.Generator:
    """The generator of the k-th update of the score in a step: they share a name, and the loop's key goes by names."""
    first = int(torch.randint(2**62, (1,), generator=rows.common(gen), device=gen.device))
    return rng.alike(gen, first, k)


def coordinates(of: Density, config: Any) -> tuple[Tensor, Tensor]:
    """`middle` (D,) and `root`, (D,) or (D, D), of the map x = middle + root y."""
    middle = torch.zeros(of.dim) if of.middle is None else of.middle.float().cpu()
    if config.whiten == "laplace" or (config.whiten == "auto" and of.kind == "posterior"):
        found = laplace.fit(of.log_prob, middle)
        return found.mode.float(), found.root.float()  # whose unit is the target's own width
    return middle, torch.full((of.dim,), config.scale * of.spread)
