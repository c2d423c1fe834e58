"""The core of one-step distillation: generator, fake score and frozen teacher, in denoiser space.

    symbol   here                meaning
    G        `generator`         x0 = D_theta(sigma(t_init) z, t_init, c), z ~ N(0, I)
    D_q      `teacher`           the diffusion or flow model's denoiser, frozen
    D_psi    `fake`              denoiser of the generator's own samples, learned alongside
    x_t      `x_t`               alpha(t) x0 + sigma(t) eps, eps independent of z
    s        `s`                 sigma(t) / alpha(t), the noise level, EDM's sigma

Each step updates `fake` `fake_steps` times on fresh generator samples, then the generator once (SiD and Diff-Instruct
in the same order). Samples are noised, and networks called, in the teacher's own process and time: nothing is divided
by alpha, and a flow may start at pure noise, t_init = 1. The losses compare denoisers, which mean the same in every
process; for a variance-exploding teacher all this reads as in EDM's papers, t = s and alpha = 1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from gentk import data
from gentk.engine import rng
from gentk.engine.draw import labels
from gentk.engine.generative import Judge, Sampler, picture
from gentk.engine.method import Batch, Export, Metrics, Phase, Result
from gentk.errors import RecipeError
from gentk.losses import matching
from gentk.losses.divergence import weight
from gentk.processes import times
from gentk.processes.denoiser import Denoiser
from gentk.processes.guidance import guided
from gentk.processes.models import Model, fast_layout, load
from gentk.processes.process import Process, diffuse, ratio
from gentk.recipe import yaml12
from gentk.tasks.distill import Guidance

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x0, d_teacher, d_fake), each (B, ...) -> (B,): the generator's loss before weighting."""

_SHOWN = 100  # samples in a picture
_SEEN = 1.0  # the noise level at which teacher and fake score are shown
_BUCKETS = (0.3, 3.0)  # noise levels that part the logged gaps into low, middle and high
# what a header says of a network
_DESCRIBES = ("net", "process", "predicts", "sigma_data", "inputs", "data", "licence")


class OneStep:
    """A `Trainable` for every objective that compares teacher and fake denoiser on noised generator samples."""

    def __init__(
        self, recipe: Any, where: torch.device, objective: Objective, *, through_denoisers: bool = True
    ) -> None:
        self.recipe, self.config, self.where = recipe, recipe.method, where
        self.objective, self.through_denoisers = objective, through_denoisers
        self.model = load(recipe.teacher, kinds=("denoiser",), where=where)
        fast_layout(self.model.net)
        assert isinstance(self.model.net, Denoiser)
        self.teacher: Denoiser = self.model.net
        self.process = self.teacher.process
        self.cycle = tuple(range(self.model.classes))
        self.t_init = _start(self.config, self.process)
        self.guidance: Guidance = self.config.guidance
        _check(self.guidance, self.model)
        self.matching: matching.Matching = {"edm": matching.edm, "flow": matching.flow}[self.config.fake_loss]
        # both start from the teacher's weights: the paper's initialisation
        self.nets = {name: self._copy() for name in ("fake", "generator")}
        self.ema = ("generator",)  # the fake score is a tool: its average would only lag behind the generator
        self.optim = {"generator": recipe.optim.generator, "fake": recipe.optim.fake}
        self.data = None  # data-free: everything is learned from the teacher
        self.judge: Judge | None = None
        self._teacher_shown: Tensor | None = None
        if recipe.measure is not None:
            reference = recipe.reference or self.model.data
            train, test = data.load(reference, "train"), data.load(reference, "test")
            if train.shape != self.model.shape:
                raise RecipeError(
                    f"reference: `{reference.name}` has samples of shape {train.shape}, "
                    f"the teacher makes {self.model.shape}"
                )
            self.judge = Judge(recipe.measure, train, test, where)

    def _copy(self) -> Denoiser:
        net = copy.deepcopy(self.teacher)
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = self.config.dropout
        return net

    def phases(self, step: int) -> Iterator[Phase]:
        """`fake_steps` updates of the fake score, then one of the generator."""
        for k in range(self.config.fake_steps):
            yield Phase("fake" if k == 0 else f"fake-{k + 1}", ("fake",), self._fake_loss)
        yield Phase("generator", ("generator",), self._generator_loss)

    def _generate(self, n: int, gen: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """(x0, labels) from fresh noise; labels uniform over the classes."""
        z = torch.randn((n, *self.model.shape), generator=gen, device=self.where)
        cond = torch.randint(self.model.classes, (n,), generator=gen, device=self.where) if self.cycle else None
        x0: Tensor = self.nets["generator"](float(self.process.sigma(self.t_init)) * z, self.t_init, cond)
        return x0, cond

    def _noise(self, law: Any, n: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (n,) by a recipe's law, and noise independent of the generator's (else psi learns another field)."""
        t = times.draw(law, self.process, n, gen, self.where)
        return t, torch.randn((n, *self.model.shape), generator=gen, device=self.where)

    def _fake_loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        with torch.no_grad():  # the fake score fits the generator's samples as data; the generator does not move here
            x0, cond = self._generate(batch.n, gen)
        t, eps = self._noise(self.config.noise_fake, batch.n, gen)
        if self.guidance.label_dropout and cond is not None:
            hidden = torch.rand(batch.n, generator=gen, device=self.where) < self.guidance.label_dropout
            cond = torch.where(hidden, self.model.classes, cond)  # the row after the last class means "no label"
        fake = guided(self.nets["fake"], self.guidance.fake_train)
        return self.matching(fake, self.process, x0, t, eps, cond, self.teacher.sigma_data).mean(), {}

    def _generator_loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        x0, cond = self._generate(batch.n, gen)
        t, eps = self._noise(self.config.noise_generator, batch.n, gen)
        t = t.to(x0.dtype)  # so that the sample is noised to exactly the level that the networks are told
        x_t = diffuse(self.process, x0, t, eps)
        # parameters of both denoisers are frozen (the teacher's always, the fake's by the engine in this phase), but
        # the graph through x_t stays: the objective's gradient lives on it, unless the objective says otherwise
        with nullcontext() if self.through_denoisers else torch.no_grad():
            d_teacher = guided(self.teacher, self.guidance.teacher)(x_t, t, cond)
            d_fake = guided(self.nets["fake"], self.guidance.fake_eval)(x_t, t, cond)
        s = ratio(self.process, t.double())
        w = weight(self.config.weight, s, x0, d_teacher, sigma_data=self.teacher.sigma_data)
        return (w * self.objective(x0, d_teacher, d_fake)).mean(), _gaps(s, (d_teacher - d_fake).detach())

    def _samplers(self, averaged: Mapping[str, nn.Module]) -> tuple[Sampler, Sampler]:
        teacher = Sampler.many(self.teacher, self.model.shape, self.cycle, self.where, self.recipe.measure)
        student = averaged["generator"]
        assert isinstance(student, Denoiser)
        return teacher, Sampler(student, self.model.shape, self.cycle, self.where, sigma_init=self.config.sigma_init)

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Teacher and student from the same noise, side by side, and the student's figures."""
        teacher, student = self._samplers(averaged)
        n, seed = (_SHOWN if len(self.model.shape) == 3 else 2000), self.recipe.seed
        if self._teacher_shown is None:
            self._teacher_shown = teacher(n, seed)
        names = (f"teacher, {teacher.nfe} NFE", f"student, {student.nfe} NFE")
        shown = picture(dict(zip(names, (self._teacher_shown, student(n, seed)), strict=True)))
        figures: dict[str, float] = {}
        if self.judge is not None:
            # the average lags behind the weights that learn: both, so that a run that turns bad is seen early
            raw = self._samplers({"generator": self.nets["generator"].eval()})[1]
            figures = self.judge.glance(student, seed)
            figures |= {f"{name}_raw": value for name, value in self.judge.glance(raw, seed).items()}
        pictures = {"teacher-student": shown, "teacher-fake": self._fields(student, seed)}
        return Result(figures, pictures, {"generator": self._export(student)})

    @torch.no_grad()  # only looked at
    def _fields(self, student: Sampler, seed: int) -> Image:
        """What teacher and fake score say of the same noised samples of the student: alike when it is done."""
        n = 36 if len(self.model.shape) == 3 else 2000
        t = self.process.t_of(torch.tensor(_SEEN, dtype=torch.float64)).clamp(self.process.t_min, self.process.t_max)
        x0 = student(n, seed).to(self.where)
        x_t = diffuse(self.process, x0, t, rng.noise(seed, 0, n, self.model.shape, purpose="fields").to(self.where))
        cond = labels(0, n, self.cycle)
        cond = None if cond is None else cond.to(self.where)
        answers = {
            name: net.eval()(x_t, t, cond) for name, net in (("teacher", self.teacher), ("fake", self.nets["fake"]))
        }
        seen = {"student": x0, "noised": x_t / (1 + _SEEN) / float(self.process.alpha(t)), **answers}
        return picture({name: each.float().cpu() for name, each in seen.items()})

    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Figures of teacher and student from the same noise, and the generator."""
        teacher, student = self._samplers(averaged)
        figures: dict[str, float] = {}
        if self.judge is not None:
            for name, sampler in (("teacher", teacher), ("student", student)):
                figures |= {f"{k}_{name}": v for k, v in self.judge(sampler, self.recipe.seed).items()}
            figures["fd_ratio"] = figures["fd_student"] / figures["fd_teacher"]
            figures["speedup"] = figures["ms_per_sample_teacher"] / figures["ms_per_sample_student"]
        return Result(figures, exports={"generator": self._export(student)})

    def _export(self, student: Sampler) -> Export:
        header = {k: self.model.header[k] for k in _DESCRIBES if k in self.model.header}
        once = self.config.sigma_init
        header |= {
            "kind": "generator",
            "sigma_init": once if math.isfinite(once) else "inf",  # JSON has no number for it
            "teacher": self.recipe.teacher,
        }
        return Export(student.denoiser.net, header)


def _start(config: Any, process: Process) -> Tensor:
    """The process time () float64 at which the generator is called. Raises RecipeError beyond the process's end."""
    end = torch.tensor(process.t_max, dtype=torch.float64)
    largest = float(ratio(process, end))
    if config.sigma_init > largest:
        raise RecipeError(
            f"method.sigma_init: {config.sigma_init:g} is beyond the teacher's {largest:g}",
            hint="lower it; fgm's t_star is sigma_init / (1 + sigma_init)",
        )
    return process.t_of(torch.tensor(config.sigma_init, dtype=torch.float64)).clamp(max=process.t_max)


def _check(guidance: Guidance, model: Model) -> None:
    """Raises RecipeError where guidance has nothing to work with: no classes, or a call without label never learned."""
    if guidance == Guidance():
        return
    if not model.classes:
        raise RecipeError(
            f"method.guidance: `{model.name}` is unconditional, there is nothing to guide towards",
            hint="leave guidance out",
        )
    if not _label_dropout(model.header):
        raise RecipeError(
            f"method.guidance: `{model.name}` did not learn with label dropout, it knows no call without a label",
            hint="train the teacher with method.label_dropout above 0",
        )
    if guidance.fake_eval != 1 and guidance.fake_train == 1 and not guidance.label_dropout:
        raise RecipeError(
            "method.guidance.fake_eval: the fake score never learns its call without a label",
            hint="set guidance.label_dropout above 0, or fake_train as well",
        )


def _label_dropout(header: dict[str, Any]) -> float:
    """The share of labels that a model did not see: of its header, or of the recipe in it where the header is older."""
    if "label_dropout" in header:
        return float(header["label_dropout"])
    recipe = yaml12.load(header.get("recipe", "{}"), source="header")
    return float(recipe.get("method", {}).get("label_dropout", 0.0))


def _gaps(s: Tensor, delta: Tensor) -> Metrics:
    """Mean |delta|^2 / d, all and by noise level: a signed loss says nothing, this falls as the student nears.

    A level that the batch does not hold gives NaN, which the log leaves out.
    """
    gap = delta.square().flatten(1).mean(1)
    low, high = _BUCKETS
    parts = {"gap_low": s < low, "gap_mid": (s >= low) & (s < high), "gap_high": s >= high}
    means = {name: (gap * mask).sum() / mask.sum() for name, mask in parts.items()}
    return {"gap": gap.mean(), **means}
