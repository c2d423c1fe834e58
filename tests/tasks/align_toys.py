"""Generators, references and rewards with known answers, and the alignment around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gentk.nets import weights
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import Model, load
from gentk.recipe import registry
from gentk.tasks.align import _subjects
from gentk.tasks.align._aligning import Aligning
from tests.tasks.toys import CPU, SIGMA_DATA, VE, Gauss, made, randomise

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


def build(of: Any, where: torch.device = CPU) -> Aligning:
    """The method of a recipe, by its own `build`."""
    built = registry.method_module("align", of.method.name).build(of, where)
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
    monkeypatch.setattr(_subjects.models, "load", lambda ref, kinds, where: models[kinds[0]])
    return build(recipe(method, **own))


def far(x: Tensor, cond: Any) -> Tensor:
    """-|x - 2|^2: pulls points that lie about the origin."""
    return -(x - 2).square().flatten(1).sum(1)


def for_people(x: Tensor, cond: Any) -> Any:
    """A convenience scorer: numbers, no graph (R1)."""
    return x.detach().flatten(1).sum(1).numpy()


def rounded(x: Tensor, cond: Any) -> Tensor:
    """A step function of the samples: its gradient is zero."""
    return x.round().flatten(1).sum(1)


def cut(x: Tensor, cond: Any) -> Tensor:
    """A tensor without graph."""
    return x.detach().flatten(1).sum(1)


def one_number(x: Tensor, cond: Any) -> Tensor:
    """One value for the whole batch."""
    return x.mean()


def overflowing(x: Tensor, cond: Any) -> Tensor:
    """Not finite, as a decoder in float16 makes it."""
    return (x * 1e4).square().half().float().flatten(1).sum(1)


def fragile(x: Tensor, cond: Any) -> Tensor:
    """Finite on the probe, NaN once samples have moved beyond 3."""
    return torch.where(x.flatten(1).abs().amax(1) > 3, torch.nan, far(x, cond))


def wrong(x: Tensor, cond: Any) -> Tensor:
    """A fault of the user's own."""
    raise KeyError("palette")


def write_generator(path: Path, teacher: Path, *, seed: int = 0, move: float = 0.0) -> Path:
    """A one-step generator with the teacher's weights, moved a little, as an exported file."""
    model = load(str(teacher), kinds=("denoiser",), where=CPU)
    assert isinstance(model.net, Denoiser)
    if move:
        randomise(model.net, seed, move)
    header = {k: v for k, v in model.header.items() if k not in ("parameters", "bytes")}
    weights.save(path, model.net.net, header | {"kind": "generator", "sigma_init": S_INIT, "teacher": str(teacher)})
    return path
