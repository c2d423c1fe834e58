"""Generators, references and rewards with known answers, and the alignment around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gentk.processes.denoiser import Denoiser
from gentk.processes.models import Model
from gentk.recipe import registry
from gentk.tasks.align import _aligning
from gentk.tasks.align._aligning import Aligning
from tests.tasks.toys import CPU, SIGMA_DATA, VE, Gauss, made

S_INIT = 2.5
PEAK, WIDTH = 1.5, 0.9


def quadratic(x: Tensor, cond: Any) -> Tensor:
    """-(x - 1.5)^2 / (2 0.9^2): the reward of dipp.md."""
    return -(x - PEAK).square().flatten(1).sum(1) / (2 * WIDTH**2)


class Affine(nn.Module):
    """x0 = mean + std z as a network that predicts x0, for a generator that is called at S_INIT."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = (nn.Parameter(torch.tensor([float(v)])) for v in (mean, std))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Any = None) -> Tensor:
        z = x * (SIGMA_DATA**2 + S_INIT**2) ** 0.5 / S_INIT
        return self.mean + self.std * z


class Pair(nn.Module):
    """One Gaussian's denoiser with a condition, another's without."""

    def __init__(self, conditional: tuple[float, float], plain: tuple[float, float]) -> None:
        super().__init__()
        self.conditional, self.plain = (Gauss(torch.tensor([m]), torch.tensor([s])) for m, s in (conditional, plain))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Any = None) -> Tensor:
        return (self.plain if cond is None else self.conditional)(x, c_noise)


def denoiser(net: nn.Module) -> Denoiser:
    """The network in EDM's process."""
    return Denoiser(net, made(VE), "x0", SIGMA_DATA)


def gauss(mean: float, std: float) -> Denoiser:
    """The exact denoiser of N(mean, std^2)."""
    return denoiser(Gauss(torch.tensor([mean]), torch.tensor([std])))


def recipe(method: dict[str, Any], **own: Any) -> Any:
    """An `align` recipe for `method`."""
    optim = {
        name: {"name": "adam", "lr": 3e-2, "betas": (0.0, 0.999), "decay": "linear", "floor": 0.02}
        for name in ("generator", "fake")
    }
    head = {"task": "align", "about": "a test", "size": "smoke", "generator": "toy", "teacher": "reference"}
    usual = {"rewards": ({"name": "function", "of": "tests.tasks.align_toys:quadratic"},), "watch": {"samples": 64}}
    sections = {"method": usual | method, "optim": optim, "train": {"steps": 4, "batch": 64}} | own
    return registry.recipe_schema("align", method["name"])(**head | sections)


def build(of: Any) -> Aligning:
    """The method of a recipe, by its own `build`."""
    built = registry.method_module("align", of.method.name).build(of, CPU)
    assert isinstance(built, Aligning)
    return built


def around(
    monkeypatch: pytest.MonkeyPatch, generator: Denoiser, teacher: Denoiser, method: dict[str, Any], **own: Any
) -> Aligning:
    """The alignment of networks that are no files: of samples of one number, with one class or none."""
    classes = int(isinstance(teacher.net, Pair))
    header = {"data": {"name": "toy", "shape": (1,), "classes": classes}, "process": VE, "label_dropout": 0.1}
    models = {
        "generator": Model("toy", generator.eval().requires_grad_(False), header | {"sigma_init": S_INIT}),
        "denoiser": Model("reference", teacher.eval().requires_grad_(False), header),
    }
    monkeypatch.setattr(_aligning, "load", lambda ref, kinds, where: models[kinds[0]])
    return build(recipe(method, **own))
