"""Teachers with known answers, and the distillation core around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gentk import nets
from gentk.engine import loop
from gentk.engine.method import Phase, Result
from gentk.engine.stop import StopRequest
from gentk.nets import weights
from gentk.processes import schedules
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import Model
from gentk.processes.process import Process
from gentk.recipe import registry, schema
from gentk.recipe.schema import Ema, Train
from gentk.tasks.distill import _one_step
from gentk.tasks.distill._one_step import OneStep
from tests.engine.tiny import Folder

CPU = torch.device("cpu")
VE, FLOW = {"name": "ve"}, {"name": "rectified-flow"}
SIGMA_DATA = 0.7  # not the usual 0.5: a constant written where the teacher's value belongs would show


def recipe(method: dict[str, Any], *, teacher: str = "toy", lr: float = 1e-2, fake_lr: float | None = None, **own: Any):
    """A `distill` recipe for `method`, its optimisers as in SIM."""
    optim = {
        name: {"name": "adam", "lr": rate, "betas": (0.0, 0.999), "decay": "linear", "floor": 0.01}
        for name, rate in (("generator", lr), ("fake", fake_lr or lr))
    }
    head = {"task": "distill", "about": "a test", "size": "smoke", "teacher": teacher}
    sections = {"method": method, "optim": optim, "train": {"steps": 4, "batch": 64}} | own
    return registry.recipe_schema("distill", method["name"])(**head, **sections)


def build(method: dict[str, Any], **own: Any) -> OneStep:
    """The method of such a recipe, by its own `build`."""
    built = registry.method_module("distill", method["name"]).build(recipe(method, **own), CPU)
    assert isinstance(built, OneStep)
    return built


def write_teacher(
    path: Path,
    *,
    process: dict[str, Any],
    predicts: str = "edm",
    classes: int = 0,
    label_dropout: float | None = None,
    seed: int = 0,
    **net: Any,
) -> Path:
    """A denoiser of points (or of 8 x 8 images, with `name="unet"`) with random weights, as an exported file."""
    kind = schema.UNet if net.get("name") == "unet" else schema.Mlp
    section = kind(**({"name": "mlp", "width": 16, "blocks": 1} | net))
    shape = (1, 8, 8) if kind is schema.UNet else (2,)
    torch.manual_seed(seed)
    network = nets.build(section, shape=shape, classes=classes)
    randomise(network, seed)
    header = {
        "kind": "denoiser",
        "net": section.model_dump(mode="json"),
        "process": process,
        "predicts": predicts,
        "sigma_data": SIGMA_DATA,
        "data": {"name": "points:ring8", "shape": shape, "classes": classes},
        "licence": "Apache-2.0",
    }
    weights.save(path, network, header | ({} if label_dropout is None else {"label_dropout": label_dropout}))
    return path


def energy_header(section: Any, shape: tuple[int, ...], levels: tuple[float, float] | None) -> dict[str, Any]:
    """What an exported energy says of itself, its noise levels from the largest."""
    return {
        "kind": "energy",
        "net": section.model_dump(mode="json"),
        "levels": None if levels is None else [levels[1], levels[0]],
        "data": {"name": "digits", "shape": shape, "classes": 0},
        "licence": "Apache-2.0",
    }


@torch.no_grad()
def randomise(net: nn.Module, seed: int, scale: float = 0.3) -> None:
    """Moves every parameter, zero-initialised ones included, so that nothing is equal or silent by construction."""
    gen = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.add_(scale * torch.randn(p.shape, generator=gen, dtype=p.dtype))


class Gauss(nn.Module):
    """The exact denoiser of N(mean, diag std^2) as a network that predicts x0: `mean` and ln std are its parameters.

    `Denoiser` hands over x_t / n = x_hat / sqrt(sd^2 + s^2) and ln(s) / 4. Called once at s_init it is a generator of
    another Gaussian: see `law`.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.log = nn.Parameter(mean.clone()), nn.Parameter(std.log())

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        s = (4 * c_noise).exp()[:, None]
        variance = (2 * self.log).exp()
        return self.mean + variance / (variance + s**2) * (x * (SIGMA_DATA**2 + s**2).sqrt() - self.mean)


def gaussian(mean: Tensor, std: Tensor, process: dict[str, Any] = VE) -> Denoiser:
    """The exact denoiser of N(mean, diag std^2) in a process."""
    return Denoiser(Gauss(mean, std), made(process), "x0", SIGMA_DATA)


def made(process: dict[str, Any]) -> Process:
    """The process of a section."""
    return schedules.build(getattr(schema, {"ve": "VE", "rectified-flow": "RectifiedFlow"}[process["name"]])(**process))


@torch.no_grad()
def law(generator: nn.Module, s: float = 2.5) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a Gaussian generator's x0 = mean + v / (v + s^2) (s z - mean)."""
    variance = (2 * generator.net.log).exp()
    gain = variance / (variance + s**2)
    return generator.net.mean * (1 - gain), gain * s


@torch.no_grad()
def set_law(generator: nn.Module, mean: Tensor, std: Tensor, s: float = 2.5) -> None:
    """Inverse of `law`: std < s."""
    variance = std * s**2 / (s - std)
    generator.net.log.copy_(variance.log() / 2)
    generator.net.mean.copy_(mean * (variance + s**2) / s**2)


@torch.no_grad()
def set_fake(fake: nn.Module, mean: Tensor, std: Tensor) -> None:
    """Makes the fake score the exact denoiser of N(mean, diag std^2)."""
    fake.net.mean.copy_(mean)
    fake.net.log.copy_(std.log())


def around(monkeypatch: pytest.MonkeyPatch, teacher: Denoiser, method: dict[str, Any], **own: Any) -> OneStep:
    """The core around a teacher that is no file."""
    shape = tuple(teacher.net.mean.shape)
    model = Model("toy", teacher.eval().requires_grad_(False), {"data": {"shape": shape, "classes": 0}})
    monkeypatch.setattr(_one_step, "load", lambda ref, kinds, where: model)
    return build(method, **own)


def fit(folder: Path, method: OneStep, *, half_life: int = 500, **train: Any) -> loop.State:
    """Trains by the engine, without pictures."""
    method.preview = lambda averaged: Result()  # type: ignore[method-assign]
    section = Train(**(method.recipe.train.model_dump() | train))
    run = Folder(folder)
    try:
        return loop.fit(
            method,
            train=section,
            average=Ema(half_life=half_life),
            seed=3,
            where=CPU,
            run=run,  # type: ignore[arg-type]
            stop=StopRequest(),
        )
    finally:
        run.log.close()


def watch(method: OneStep, before: Callable[[Phase], object], after: Callable[[Phase], object]) -> None:
    """Runs `before` and `after` around every update of the method."""
    phases = method.phases

    def watched(step: int) -> Iterator[Phase]:
        for phase in phases(step):
            before(phase)
            yield phase
            after(phase)

    method.phases = watched  # type: ignore[method-assign]


def freeze(method: OneStep, *moving: str) -> None:
    """Puts the networks as the engine has them in a phase that moves `moving`."""
    for name, net in method.nets.items():
        net.requires_grad_(name in moving).train(name in moving)
