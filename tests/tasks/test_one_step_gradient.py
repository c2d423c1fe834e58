"""The generator phase and the fake phase against the same computation written out from the papers, draw by draw.

Here: textbook EDM preconditioning for a variance-exploding teacher, the straight-path formulas for a rectified flow,
the loss table of our notes, and the noise laws, none of it taken from gentk. float64, so the two agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gentk.engine import rng
from gentk.engine.method import Batch
from gentk.tasks.distill._one_step import OneStep
from tests.tasks.toys import FLOW, SIGMA_DATA, VE, build, freeze, randomise, write_teacher

pytestmark = pytest.mark.usefixtures("double")

N, CLASSES, S_INIT = 64, 3, 2.5
AUTO = 0.00054 * math.sqrt(2)
METHODS: dict[str, dict[str, Any]] = {
    "sim-l2": {"name": "sim", "distance": "l2"},
    "sim-l2-full": {"name": "sim", "distance": "l2", "path": "full"},
    "sim-pseudo-huber": {"name": "sim"},
    "sim-l2-norm": {"name": "sim", "distance": "l2-norm"},
    "sim-smooth-l1": {"name": "sim", "distance": "smooth-l1", "c": 0.3},
    "diff-instruct": {"name": "diff-instruct"},
    "sid": {"name": "sid", "alpha": 1.2},
    "fgm": {"name": "fgm", "t_star": S_INIT / (1 + S_INIT)},
    "fgm-full": {"name": "fgm", "t_star": S_INIT / (1 + S_INIT), "path": "full"},
}


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # (x0, d_teacher, d_fake), all (B, 2)
    "sim-l2": lambda x0, q, p: dot(q - p, p - x0),
    "sim-l2-full": lambda x0, q, p: dot(q - p, (q - x0) - 0.5 * (q - p)),  # as SiD with alpha = 1/2
    "sim-pseudo-huber": lambda x0, q, p: dot(q - p, p - x0) / (dot(q - p, q - p) + AUTO**2).sqrt(),
    "sim-l2-norm": lambda x0, q, p: dot(q - p, p - x0) / dot(q - p, q - p).sqrt(),
    "sim-smooth-l1": lambda x0, q, p: dot((q - p) / ((q - p) ** 2 + 0.3**2).sqrt(), p - x0),
    "diff-instruct": lambda x0, q, p: dot((p - q).detach(), x0),
    "sid": lambda x0, q, p: dot(q - p, (q - x0) - 1.2 * (q - p)),
    "fgm": lambda x0, q, p: 2 * dot(q - p, p - x0),
    "fgm-full": lambda x0, q, p: 2 * dot(q - p, p - x0) + dot(q - p, q - p),
}
WEIGHTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # (s, x0, d_teacher)
    "const": lambda s, x0, q: torch.ones_like(s),
    "s2": lambda s, x0, q: 1 / s**2,
    "s4": lambda s, x0, q: 1 / s**4,
    "edm": lambda s, x0, q: (s**2 + SIGMA_DATA**2) / (s * SIGMA_DATA) ** 2,
    "sid-l1": lambda s, x0, q: 1 / (x0 - q).detach().abs().mean(1),
    "velocity": lambda s, x0, q: 1 / (s / (1 + s)).clamp(min=1e-3) ** 2,
}
LAWS: dict[str, dict[str, Any]] = {
    "karras": {"name": "karras"},
    "lognormal": {"name": "lognormal", "mean": -0.4},
    "flow": {"name": "uniform", "clock": "flow"},
}


def levels(law: str, gen: torch.Generator, process: dict[str, Any]) -> Tensor:
    if law == "karras":  # SiD: uniform on EDM's grid, 800 thousandths of it from the small end
        u = torch.rand(N, generator=gen)
        s = (0.002 ** (1 / 7) + 0.8 * u * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    elif law == "flow":  # t uniform on what the process reaches, s = t / (1 - t)
        low, high = (0.002 / 1.002, 80 / 81) if process is VE else (1e-4, 1.0)
        t = low + (high - low) * torch.rand(N, generator=gen)
        s = t / (1 - t)
    else:
        s = torch.exp(-0.4 + 1.2 * torch.randn(N, generator=gen))
    low = 0.002 if process is VE else 1e-4 / (1 - 1e-4)  # what the process calls its smallest level
    return s.clamp(min=low)


def denoise(net: nn.Module, x: Tensor, s: Tensor, cond: Tensor, process: dict[str, Any]) -> Tensor:
    """E[x0 | x0 + s eps = x] by the network: EDM's preconditioning, or a velocity on the straight path."""
    label, s = s.log() / 4, s[:, None]
    if process is VE:
        total = s**2 + SIGMA_DATA**2
        return SIGMA_DATA**2 / total * x + s * SIGMA_DATA / total.sqrt() * net(x / total.sqrt(), label, cond)
    t = s / (1 + s)
    x_t = (1 - t) * x
    velocity = net(x_t / ((1 - t) ** 2 * SIGMA_DATA**2 + t**2).sqrt(), label, cond)  # noise - data
    return x_t - t * velocity


def by_hand(method: OneStep, name: str, weight: str, law: str, process: dict[str, Any], key: int) -> list[Tensor]:
    gen = rng.generator(key)
    z = torch.randn(N, 2, generator=gen)
    cond = torch.randint(CLASSES, (N,), generator=gen)
    s = levels(law, gen, process)
    eps = torch.randn(N, 2, generator=gen)
    generator, fake = method.nets["generator"].net, method.nets["fake"].net
    x0 = denoise(generator, S_INIT * z, torch.full((N,), S_INIT), cond, process)
    x = x0 + s[:, None] * eps
    q, p = (denoise(net, x, s, cond, process) for net in (method.teacher.net, fake))
    loss = (WEIGHTS[weight](s, x0, q) * LOSSES[name](x0, q, p)).mean()
    return list(torch.autograd.grad(loss, list(generator.parameters())))


def core(folder: Path, name: str, weight: str, law: str, process: dict[str, Any], **own: Any) -> OneStep:
    predicts = "edm" if process is VE else "flow"
    path = write_teacher(folder / "t.safetensors", process=process, predicts=predicts, classes=CLASSES)
    laws = {"noise_generator": LAWS[law], "noise_fake": LAWS["lognormal"]}
    method = build(METHODS[name] | laws | {"weight": weight} | own, teacher=str(path))
    randomise(method.nets["generator"], 1, 0.1)
    randomise(method.nets["fake"], 2, 0.1)
    freeze(method, "generator")
    return method


def gradient(method: OneStep, key: int) -> list[Tensor]:
    loss, _ = method._generator_loss(Batch(N), rng.generator(key))
    return list(torch.autograd.grad(loss, list(method.nets["generator"].parameters())))


def apart(a: list[Tensor], b: list[Tensor]) -> float:
    """Relative distance of two gradients as one vector."""
    x, y = (torch.cat([g.flatten() for g in each]) for each in (a, b))
    return float((x - y).norm() / y.norm())


CASES = [(name, "const", "karras") for name in METHODS]
CASES += [("sim-l2", weight, "lognormal") for weight in WEIGHTS] + [("diff-instruct", "sid-l1", "lognormal")]
CASES += [("sid", "sid-l1", "karras"), ("fgm", "velocity", "flow"), ("fgm-full", "velocity", "flow")]


@pytest.mark.parametrize("process", [VE, FLOW], ids=["ve", "rectified-flow"])
@pytest.mark.parametrize(("name", "weight", "law"), CASES)
def test_the_generator_phase(tmp_path: Path, name: str, weight: str, law: str, process: dict[str, Any]) -> None:
    """1e-9: rounding, 1e-16, times the condition of s at its ends (1 - t for the flow) and of the s^-4 weight."""
    method = core(tmp_path, name, weight, law, process)
    mine = gradient(method, 5)
    assert apart(mine, by_hand(method, name, weight, law, process, 5)) < 1e-9
    assert apart(mine, by_hand(method, name, weight, law, process, 6)) > 0.01, "the control: other draws"


def test_the_comparison_tells_the_methods_apart(tmp_path: Path) -> None:
    """Negative controls: another objective, weight, law or level of the generator is no rounding error."""
    method = core(tmp_path, "sim-l2", "const", "karras", VE)
    mine = gradient(method, 5)
    for other in ("sim-l2-full", "sim-pseudo-huber", "diff-instruct", "sid", "fgm"):
        assert apart(mine, by_hand(method, other, "const", "karras", VE, 5)) > 0.01
    assert apart(mine, by_hand(method, "sim-l2", "edm", "karras", VE, 5)) > 0.01
    assert apart(mine, by_hand(method, "sim-l2", "const", "lognormal", VE, 5)) > 0.01
    assert apart(mine, by_hand(method, "sim-l2", "const", "karras", FLOW, 5)) > 0.01


@pytest.mark.parametrize("process", [VE, FLOW], ids=["ve", "rectified-flow"])
@pytest.mark.parametrize("fake_loss", ["edm", "flow"])
def test_the_fake_phase(tmp_path: Path, process: dict[str, Any], fake_loss: str) -> None:
    """lambda(s) mean |D_psi(x0 + s eps) - x0|^2, lambda = (s^2 + sd^2) / (s sd)^2, on samples that carry no graph.

    `flow` is mean |v_psi - (eps - x0)|^2 with v_psi = (x_t - D_psi) / t on the straight path.
    """
    method = core(tmp_path, "sim-l2", "const", "karras", process, fake_loss=fake_loss)
    freeze(method, "fake")
    loss, _ = method._fake_loss(Batch(N), rng.generator(5))
    fake, generator = method.nets["fake"], method.nets["generator"]
    mine = list(torch.autograd.grad(loss, list(fake.parameters())))
    gen = rng.generator(5)
    z = torch.randn(N, 2, generator=gen)
    cond = torch.randint(CLASSES, (N,), generator=gen)
    s = levels("lognormal", gen, process)
    eps = torch.randn(N, 2, generator=gen)
    x0 = denoise(generator.net, S_INIT * z, torch.full((N,), S_INIT), cond, process).detach()
    clean, t = denoise(fake.net, x0 + s[:, None] * eps, s, cond, process), (s / (1 + s))[:, None]
    if fake_loss == "edm":
        want = ((s**2 + SIGMA_DATA**2) / (s * SIGMA_DATA) ** 2 * (clean - x0).square().mean(1)).mean()
    else:
        want = (((1 - t) * x0 + t * eps - clean) / t - (eps - x0)).square().mean()
    assert float(loss.detach()) == pytest.approx(float(want.detach()), rel=1e-10)
    assert apart(mine, list(torch.autograd.grad(want, list(fake.parameters())))) < 1e-9


def test_the_gaps_are_means_of_the_squared_difference(tmp_path: Path) -> None:
    """`gap` is mean |D_q - D_psi|^2 / d over the batch, the others the same over low, middle and high noise levels."""
    method = core(tmp_path, "sim-l2", "const", "karras", VE)
    _, figures = method._generator_loss(Batch(N), rng.generator(5))
    gen = rng.generator(5)
    z = torch.randn(N, 2, generator=gen)
    cond = torch.randint(CLASSES, (N,), generator=gen)
    s = levels("karras", gen, VE)
    eps = torch.randn(N, 2, generator=gen)
    x0 = denoise(method.nets["generator"].net, S_INIT * z, torch.full((N,), S_INIT), cond, VE)
    q, p = (denoise(net, x0 + s[:, None] * eps, s, cond, VE) for net in (method.teacher.net, method.nets["fake"].net))
    gap = (q - p).square().mean(1).detach()
    parts = {"gap": s > 0, "gap_low": s < 0.3, "gap_mid": (s >= 0.3) & (s < 3), "gap_high": s >= 3}
    assert figures.keys() == parts.keys()
    for name, mask in parts.items():
        assert mask.any()
        assert float(figures[name]) == pytest.approx(float(gap[mask].mean()), rel=1e-9)
        assert not figures[name].requires_grad
