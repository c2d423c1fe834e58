"""The core of one-step methods: generator, fake score and frozen teacher, in denoiser space.

    symbol   here                meaning
    G        `generator`         x0 = D_theta(sigma(t_init) z, t_init, c), z ~ N(0, I)
    D_q      `teacher`           the diffusion or flow model's denoiser, frozen
    D_psi    `fake`              denoiser of the generator's own samples, learned alongside
    x_t      `x_t`               alpha(t) x0 + sigma(t) eps, eps independent of z
    s        `s`                 sigma(t) / alpha(t), the noise level, EDM's sigma
    c        `cond`              what all three are told: a class, a prompt, or None

Samples are noised, and networks called, in the teacher's own process and time: nothing is divided by alpha, and a flow
may start at pure noise, t_init = 1. Losses compare denoisers, which mean the same in every process; for a
variance-exploding teacher all this reads as in EDM's papers, t = s and alpha = 1. What the losses are is the methods'.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from gentk.engine import rng
from gentk.engine.draw import conditions
from gentk.engine.generative import Sampler
from gentk.engine.method import Export, Metrics
from gentk.errors import RecipeError
from gentk.losses import matching
from gentk.losses.divergence import Weight, weight
from gentk.nets.lora import Adapted, adapted, merged
from gentk.processes import rows, times
from gentk.processes.denoiser import Denoiser
from gentk.processes.guidance import guided
from gentk.processes.models import Model
from gentk.processes.process import Process, diffuse, ratio
from gentk.recipe import yaml12
from gentk.recipe.lora import Lora
from gentk.recipe.schema import Times

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x0, d_teacher, d_fake), each (B, ...) -> (B,): a generator's loss before weighting."""

_SEEN = 1.0  # the noise level at which teacher and fake score are shown
_BUCKETS = (0.3, 3.0)  # noise levels that part the logged gaps into low, middle and high
# what a header says of a network
_DESCRIBES = ("net", "pipeline", "process", "predicts", "sigma_data", "inputs", "shift", "data", "licence")


class Conditions(Protocol):
    """What samples are of: classes, prompts, or nothing."""

    @property
    def count(self) -> int:
        """How many different ones there are; 0: none, and every `cond` is None."""
        ...

    def draw(self, n: int, gen: torch.Generator, where: torch.device) -> Any:
        """n of those that are learned from, at random by `gen` alone."""
        ...

    def take(self, index: Tensor, where: torch.device) -> Any:
        """Those of the numbers `index` (n,) int64."""
        ...

    def hide(self, cond: Any, hidden: Tensor) -> Any:
        """`cond` with those where `hidden` (n,) is true replaced by the empty one."""
        ...


@dataclass(frozen=True)
class Labels:
    """Class labels 0 to `classes` - 1, uniform over `allowed` (all where empty); `classes` = 0: no labels."""

    classes: int
    allowed: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """The number of classes."""
        return self.classes

    def draw(self, n: int, gen: torch.Generator, where: torch.device) -> Tensor | None:
        """(n,) int64, or None where there are no classes."""
        if not self.classes:
            return None
        if not self.allowed:
            return rows.randint(self.classes, (n,), gen, device=where)
        chosen = rows.randint(len(self.allowed), (n,), gen, device=where)
        return torch.tensor(self.allowed, device=where)[chosen]

    def take(self, index: Tensor, where: torch.device) -> Tensor | None:
        """`index` itself."""
        return index.to(where) if self.classes else None

    def hide(self, cond: Tensor, hidden: Tensor) -> Tensor:
        """The row after the last class means "no label"."""
        return torch.where(hidden, self.classes, cond)


@dataclass(frozen=True)
class Compared:
    """What teacher and fake score say of noised samples: s (B,) float64, the rest (B, ...)."""

    s: Tensor
    x_t: Tensor
    t: Tensor
    d_teacher: Tensor
    d_fake: Tensor


@dataclass
class Core:
    """The three networks around one process. `nets` has `generator` and `fake`, which learn; all noise is drawn here.

    The order of the draws is part of the promise that a run is the same run again: sample noise, condition, then times,
    noise of the noising, and what is hidden.
    """

    teacher: Denoiser
    nets: Mapping[str, nn.Module]
    shape: tuple[int, ...]
    conditions: Conditions
    t_init: Tensor
    where: torch.device

    @property
    def process(self) -> Process:
        """The teacher's process, in which everything is noised."""
        return self.teacher.process

    def generate(self, n: int, gen: torch.Generator) -> tuple[Tensor, Any]:
        """(x0, cond) from fresh noise and conditions."""
        z = rows.randn((n, *self.shape), gen, device=self.where)
        cond = self.conditions.draw(n, gen, self.where)
        return self.of(z, cond), cond

    def of(self, z: Tensor, cond: Any) -> Tensor:
        """The generator's samples of unit noise `z` (n, ...)."""
        x0: Tensor = self.nets["generator"](float(self.process.sigma(self.t_init)) * z, self.t_init, cond)
        return x0

    def noise(self, law: Times, n: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (n,) by a recipe's law, and noise independent of the generator's (else psi learns another field)."""
        t = times.draw(law, self.process, n, gen, self.where)
        return t, rows.randn((n, *self.shape), gen, device=self.where)

    def fit_fake(
        self,
        n: int,
        gen: torch.Generator,
        *,
        law: Times,
        loss: Literal["edm", "flow"],
        scale: float = 1.0,
        dropout: float = 0.0,
        samples: tuple[Tensor, Any] | None = None,
    ) -> Tensor:
        """The fake score's loss () on n samples: it fits them as data, the generator does not move here.

        `samples` are (x0, cond) made before, None: fresh ones. `scale` guides it while it learns; `dropout` is the
        share of conditions hidden from it.
        """
        with torch.no_grad():
            x0, cond = samples or self.generate(n, gen)
        t, eps = self.noise(law, n, gen)
        if dropout and cond is not None:
            cond = self.conditions.hide(cond, rows.rand((n,), gen, device=self.where) < dropout)
        fit: matching.Matching = {"edm": matching.edm, "flow": matching.flow}[loss]
        fake = guided(self.nets["fake"], scale)
        return fit(fake, self.process, x0, t, eps, cond, self.teacher.sigma_data).mean()

    def compare(
        self,
        x0: Tensor,
        cond: Any,
        gen: torch.Generator,
        *,
        law: Times,
        teacher: float = 1.0,
        fake: float = 1.0,
        through: bool = True,
    ) -> Compared:
        """Teacher and fake score, guided by these scales, on x0 noised at times of `law`.

        Parameters of both are frozen (the teacher's always, the fake's by the engine in the generator's phase), but the
        graph through x_t stays, on which an objective's gradient may live; `through=False`: not for this one.
        """
        t, eps = self.noise(law, len(x0), gen)
        t = t.to(x0.dtype)  # so that the sample is noised to exactly the level that the networks are told
        x_t = diffuse(self.process, x0, t, eps)
        with nullcontext() if through else torch.no_grad():
            d_teacher = guided(self.teacher, teacher)(x_t, t, cond)
            d_fake = guided(self.nets["fake"], fake)(x_t, t, cond)
        return Compared(ratio(self.process, t.double()), x_t, t, d_teacher, d_fake)

    def weigh(self, name: Weight, x0: Tensor, seen: Compared) -> Tensor:
        """w(s) of each sample: (B,) without graph."""
        return weight(name, seen.s, x0, seen.d_teacher, sigma_data=self.teacher.sigma_data)

    @torch.no_grad()  # only looked at
    def fields(self, student: Sampler, seed: int, n: int) -> dict[str, Tensor]:
        """What teacher and fake score say of the same n noised samples of the student: alike when it is done.

        By name, (n, ...) on the CPU: the samples, the noised ones as the scores see them, and the two answers.
        """
        t = self.process.t_of(torch.tensor(_SEEN, dtype=torch.float64)).clamp(self.process.t_min, self.process.t_max)
        x0 = student(n, seed).to(self.where)
        x_t = diffuse(self.process, x0, t, rng.noise(seed, 0, n, self.shape, purpose="fields").to(self.where))
        cond = conditions(0, n, student.cycle)
        cond = None if cond is None else cond.to(self.where)
        answers = {
            name: net.eval()(x_t, t, cond) for name, net in (("teacher", self.teacher), ("fake", self.nets["fake"]))
        }
        seen = {"student": x0, "noised": x_t / (1 + _SEEN) / float(self.process.alpha(t)), **answers}
        return {name: each.float().cpu() for name, each in seen.items()}


def copies(net: Denoiser, *, dropout: float = 0.0) -> Denoiser:
    """A copy that learns by itself, with a dropout of its own; in float32 where `net` computes in less."""
    new = copy.deepcopy(net)
    if next(new.parameters()).dtype in (torch.float16, torch.bfloat16):
        new.float()
    for module in new.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return new


def learner(net: Denoiser, lora: Lora | None, gen: torch.Generator, *, dropout: float = 0.0) -> Denoiser:
    """What starts as `net` and learns: a copy, or adapters (of `gen`) around the weights of `net`, which stay."""
    if lora is None:
        return copies(net, dropout=dropout)
    around = adapted(net.net, lora, gen)
    for module in around.body.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return Denoiser(around, net.process, net.predicts, net.sigma_data, net.inputs)


def start(sigma_init: float, process: Process, place: str = "method.sigma_init") -> Tensor:
    """The process time () float64 at which the generator is called. Raises RecipeError beyond the process's end."""
    end = torch.tensor(process.t_max, dtype=torch.float64)
    largest = float(ratio(process, end))
    if sigma_init > largest:
        raise RecipeError(
            f"{place}: {sigma_init:g} is beyond the teacher's {largest:g}",
            hint="lower it; fgm's t_star is sigma_init / (1 + sigma_init)",
        )
    return process.t_of(torch.tensor(sigma_init, dtype=torch.float64)).clamp(max=process.t_max)


def label_dropout(header: Mapping[str, Any]) -> float:
    """The share of labels that a model did not see: of its header, or of the recipe in it where the header is older."""
    if "label_dropout" in header:
        return float(header["label_dropout"])
    recipe = yaml12.load(header.get("recipe", "{}"), source="header")
    return float(recipe.get("method", {}).get("label_dropout", 0.0))


def check_guidable(model: Model, key: str, *, hint: str) -> None:
    """Raises RecipeError, at the recipe's `key`, where a class-conditional model has nothing to be guided away from."""
    if not model.classes:
        raise RecipeError(f"{key}: `{model.name}` is unconditional, there is nothing to guide towards", hint=hint)
    if not label_dropout(model.header):
        raise RecipeError(
            f"{key}: `{model.name}` did not learn with label dropout, it knows no call without a label",
            hint=f"{hint}, or train it with method.label_dropout above 0",
        )


def gaps(s: Tensor, delta: Tensor) -> Metrics:
    """Mean |delta|^2 / d, all and by noise level: a signed loss says nothing, this falls as the student nears.

    A level that the batch does not hold gives NaN, which the log leaves out.
    """
    gap = delta.square().flatten(1).mean(1)
    low, high = _BUCKETS
    parts = {"gap_low": s < low, "gap_mid": (s >= low) & (s < high), "gap_high": s >= high}
    means = {name: (gap * mask).sum() / mask.sum() for name, mask in parts.items()}
    return {"gap": gap.mean(), **means}


def export(student: Denoiser, model: Model, sigma_init: float, teacher: str) -> Export:
    """The generator as a file: what `model`'s header says of the network, and how it is called."""
    header = {k: model.header[k] for k in _DESCRIBES if k in model.header}
    header |= {
        "kind": "generator",
        "sigma_init": sigma_init if math.isfinite(sigma_init) else "inf",  # JSON has no number for it
        "teacher": teacher,
    }
    net = student.net
    return Export(merged(net) if isinstance(net, Adapted) else net, header)
