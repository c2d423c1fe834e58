"""Showing and measuring generative models: the figures and pictures that training and distillation share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from PIL.Image import Image
from torch import Tensor

from gentk.data import DataSet, to_uint8
from gentk.engine import dist, pictures
from gentk.engine.draw import batches, draw
from gentk.errors import RecipeError
from gentk.metrics.features import Extractor, extractor
from gentk.metrics.frechet import Moments, frechet
from gentk.metrics.quality import all_of, moments, quality
from gentk.nets.text.prompts import Prompts
from gentk.processes.denoiser import Denoiser
from gentk.processes.grids import build, to_times
from gentk.recipe.schema import KarrasGrid, Measure, TimeGrid
from gentk.solvers import euler, evaluations, heun, one_step


@dataclass(frozen=True)
class Sampler:
    """A model and the way it is sampled: many steps, or one step from noise level `sigma_init`, which may be inf."""

    denoiser: Denoiser
    shape: tuple[int, ...]
    cycle: tuple[int, ...] | Prompts
    where: torch.device
    steps: int = 18
    sigma_init: float | None = None
    solver: Literal["heun", "euler"] = "heun"
    grid: Literal["karras", "time"] = "karras"

    @classmethod
    def many(
        cls,
        denoiser: Denoiser,
        shape: tuple[int, ...],
        cycle: tuple[int, ...] | Prompts,
        where: torch.device,
        measure: Measure | None,
    ) -> Sampler:
        """A many-step model, drawn from as a recipe's `measure:` says."""
        own = {} if measure is None else measure.model_dump(include={"steps", "solver", "grid"})
        return cls(denoiser, shape, cycle, where, **own)

    @property
    def nfe(self) -> int:
        """Network evaluations per sample."""
        return evaluations(self._solve, self.denoiser.process, self._grid)

    def __call__(self, n: int, seed: int, *, batch: int = 500) -> Tensor:
        """Samples 0 to n of `seed`: float32 (n, *shape) on the CPU; sample k is the same for every n and batch."""
        parts = dist.current().spread(batches(0, n, batch), lambda part: self.part(*part, seed))
        return torch.cat(parts)

    def part(self, first: int, n: int, seed: int) -> Tensor:
        """Samples `first` to `first + n` of `seed`, in one batch."""
        return draw(
            self.denoiser,
            self.denoiser.process,
            self._solve,
            self._grid,
            shape=self.shape,
            cycle=self.cycle,
            seed=seed,
            first=first,
            n=n,
            where=self.where,
        )

    @property
    def _solve(self) -> Callable[..., Tensor]:
        if self.sigma_init is not None:
            return one_step.solve
        return {"heun": heun.solve, "euler": euler.solve}[self.solver]

    @cached_property
    def _grid(self) -> Tensor:
        """EDM's grid within what the process allows, or even times from its end to 0; or the one level and 0."""
        process = self.denoiser.process
        if self.sigma_init is not None:
            return to_times(process, torch.tensor([float(self.sigma_init), 0.0], dtype=torch.float64))
        if self.grid == "time":
            return build(TimeGrid(name="time", t_min=0.0), self.steps, process)
        return build(KarrasGrid(name="karras"), self.steps, process)


def rounded(samples: Tensor) -> Tensor:
    """What is left of images after they have been written as bytes: figures are those of files, not of floats."""
    return to_uint8(samples).float() / 127.5 - 1 if samples.dim() == 4 else samples


class Drawer(Protocol):
    """Whatever samples can be had of: a `Sampler`, or a method's own way."""

    @property
    def nfe(self) -> int:
        """Network evaluations per sample."""
        ...

    def __call__(self, n: int, seed: int, *, batch: int = 500) -> Tensor:
        """Samples 0 to n of `seed`: float32 (n, *shape) on the CPU."""
        ...


class Judge:
    """Measures samplers against one data set in one feature space."""

    def __init__(self, section: Measure, train: DataSet, test: DataSet, where: torch.device) -> None:
        fewest = min(section.n, len(train))
        if section.k >= fewest or section.n < 2:  # said before the training that would end in it
            raise RecipeError(f"measure.k: {section.k} neighbours need more than {fewest} samples; raise measure.n")
        self.section, self.train, self.test = section, train, test
        self.extract: Extractor = extractor(section.features, shape=train.shape, where=where)

    def __call__(self, sampler: Drawer, seed: int) -> dict[str, float]:
        """The figures of `metrics.quality`, `nfe`, and `ms_per_sample`: the wall time of drawing, per sample."""
        begun = time.perf_counter()
        samples = rounded(sampler(self.section.n, seed, batch=self.section.batch))
        seconds = time.perf_counter() - begun
        figures = quality(samples, self.train, self.test, self.extract, k=self.section.k)
        return figures | {"nfe": float(sampler.nfe), "ms_per_sample": 1000 * seconds / self.section.n}

    def glance(self, sampler: Drawer, seed: int) -> dict[str, float]:
        """The Frechet distance of few samples, for the curve along the way; empty when `measure.preview` is 0."""
        if not self.section.preview:
            return {}
        samples = rounded(sampler(self.section.preview, seed, batch=self.section.batch))
        return {"fd": frechet(self._real, moments(self.extract(samples)))}

    @cached_property
    def _real(self) -> Moments:
        return moments(self.extract(all_of(self.train)))


def picture(groups: Mapping[str, Tensor]) -> Image:
    """Samples side by side, one panel per group: grids of images, or one scatter plot of points."""
    first = next(iter(groups.values()))
    if first.dim() == 2:
        return pictures.scatter(groups)
    panels = {name: to_uint8(x) for name, x in groups.items()}
    if len(panels) == 1:
        return pictures.grid(next(iter(panels.values())))
    return pictures.side_by_side(panels)
