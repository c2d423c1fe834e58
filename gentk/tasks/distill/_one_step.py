"""One-step distillation in the training loop: the core of `engine.one_step` with an objective, nothing but a teacher.

Each step updates the fake score `fake_steps` times on fresh generator samples, then the generator once (SiD and
Diff-Instruct in the same order).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from gentk import data
from gentk.engine import rng
from gentk.engine.generative import Judge, Sampler, picture
from gentk.engine.method import Batch, Export, Metrics, Phase, Result
from gentk.engine.one_step import Core, Objective, export, gaps, learner, start
from gentk.engine.precision import saving
from gentk.errors import RecipeError
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import load
from gentk.tasks.distill import Guidance
from gentk.tasks.distill._teachers import Guided, taught


class OneStep:
    """A `Trainable` for every objective that compares teacher and fake denoiser on noised generator samples."""

    def __init__(
        self, recipe: Any, where: torch.device, objective: Objective, *, through_denoisers: bool = True
    ) -> None:
        self.recipe, self.config, self.where = recipe, recipe.method, where
        self.objective, self.through_denoisers = objective, through_denoisers
        self.taught = taught(recipe, where, load)
        self.model = self.taught.model
        self.teacher, self.codec = self.taught.denoiser, self.taught.codec
        self.process = self.teacher.process
        self.t_init = start(self.config.sigma_init, self.process)
        self.guidance: Guidance = self.config.guidance
        if recipe.train.checkpointing:  # before the copies: gradients pass through the teacher too
            saving({"teacher": self.teacher})
        # both start from the teacher's weights: the paper's initialisation; from an energy's, those of the U-Net in it
        begin = self.taught.begin or self.teacher
        self.nets = {
            name: learner(begin, recipe.lora, rng.generator(recipe.seed, "lora", name), dropout=self.config.dropout)
            for name in ("fake", "generator")
        }
        self.core = Core(self.teacher, self.nets, self.model.shape, self.taught.conditions, self.t_init, where)
        self.ema = ("generator",)  # the fake score is a tool: its average would only lag behind the generator
        self.optim = {"generator": recipe.optim.generator, "fake": recipe.optim.fake}
        self._made: list[tuple[Tensor, Any]] = []  # samples of this step's generator update, by micro-batch
        self._reused: Iterator[tuple[Tensor, Any]] = iter(())
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

    def phases(self, step: int) -> Iterator[Phase]:
        """`fake_steps` updates of the fake score, then one of the generator; with `reuse` the generator goes first.

        First, because a fake score that was just fitted to samples lies too near to them to judge the same ones; so it
        learns from those of one update ago instead.
        """
        generator = Phase("generator", ("generator",), self._generator_loss)
        if self.config.reuse:
            self._made.clear()
            yield generator
        for k in range(self.config.fake_steps):
            self._reused = iter(self._made)
            yield Phase("fake" if k == 0 else f"fake-{k + 1}", ("fake",), self._fake_loss)
        if not self.config.reuse:
            yield generator

    def _fake_loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        config, guidance = self.config, self.guidance
        loss = self.core.fit_fake(
            batch.n,
            gen,
            law=config.noise_fake,
            loss=config.fake_loss,
            scale=guidance.fake_train,
            dropout=guidance.label_dropout,
            samples=next(self._reused) if config.reuse else None,
        )
        return loss, {}

    def _generator_loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        x0, cond = self.core.generate(batch.n, gen)
        if self.config.reuse:
            self._made.append((x0.detach(), cond))  # for the fake score they are data
        seen = self.core.compare(
            x0,
            cond,
            gen,
            law=self.config.noise_generator,
            teacher=self.guidance.teacher,
            fake=self.guidance.fake_eval,
            through=self.through_denoisers,
        )
        w = self.core.weigh(self.config.weight, x0, seen)
        loss = (w * self.objective(x0, seen.d_teacher, seen.d_fake)).mean()
        return loss, gaps(seen.s, (seen.d_teacher - seen.d_fake).detach())

    def _samplers(self, averaged: Mapping[str, nn.Module]) -> tuple[Sampler, Sampler]:
        shape, cycle = self.model.shape, self.taught.cycle
        # prompts are answered by a guided teacher alone, classes by a plain one as well
        shown: Any = self.teacher if self.taught.codec is None else Guided(self.teacher, self.guidance.teacher)
        teacher = Sampler.many(shown, shape, cycle, self.where, self.recipe.measure)
        student = averaged["generator"]
        assert isinstance(student, Denoiser)
        return teacher, Sampler(student, shape, cycle, self.where, sigma_init=self.config.sigma_init)

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Teacher and student from the same noise, side by side, and the student's figures."""
        teacher, student = self._samplers(averaged)
        n, seed = self.taught.shown, self.recipe.seed
        if self._teacher_shown is None:
            self._teacher_shown = self.taught.seen(teacher(n, seed), self.where)
        names = (f"teacher, {teacher.nfe} NFE", f"student, {student.nfe} NFE")
        made = self.taught.seen(student(n, seed), self.where)
        shown = picture(dict(zip(names, (self._teacher_shown, made), strict=True)))
        figures: dict[str, float] = {}
        if self.judge is not None:
            # the average lags behind the weights that learn: both, so that a run that turns bad is seen early
            raw = self._samplers({"generator": self.nets["generator"].eval()})[1]
            figures = self.judge.glance(student, seed)
            figures |= {f"{name}_raw": value for name, value in self.judge.glance(raw, seed).items()}
        pictures = {"teacher-student": shown, "teacher-fake": self._fields(student)}
        return Result(figures, pictures, {"generator": self._export(student)})

    def _fields(self, student: Sampler) -> Image:
        n = 36 if self.taught.codec is None and len(self.model.shape) == 3 else self.taught.shown
        seen = self.core.fields(student, self.recipe.seed, n)
        return picture({name: self.taught.seen(x, self.where) for name, x in seen.items()})

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
        return export(student.denoiser, self.model, self.config.sigma_init, self.recipe.teacher)
