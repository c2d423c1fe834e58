"""Which graphs the generator phase keeps: SIM's gradient lives on the denoisers' graphs, Diff-Instruct needs none.

T1 to T3 are numbers in our list of mistakes that score implicit matching invites.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gentk.engine import rng
from gentk.engine.method import Batch
from gentk.losses.divergence import diff_instruct, sim
from gentk.processes import times
from gentk.processes.denoiser import Denoiser
from gentk.tasks.distill._one_step import OneStep
from tests.tasks.toys import CPU, build, freeze, randomise

SIM: dict[str, Any] = {"name": "sim"}
DI: dict[str, Any] = {"name": "diff-instruct"}


@pytest.mark.parametrize("cut", ["teacher", "fake", "both"])
def test_sim_refuses_a_denoiser_without_a_graph(monkeypatch: pytest.MonkeyPatch, teacher: str, cut: str) -> None:
    """T1 to T3 as one would write them: `no_grad` around the teacher's call, the fake score's, or both."""
    method = build(SIM, teacher=teacher)

    forward = Denoiser.forward

    def without(denoiser: Denoiser, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        chosen = {"teacher": (method.teacher,), "fake": (method.nets["fake"],)}
        with torch.set_grad_enabled(torch.is_grad_enabled() and all(denoiser is not d for d in chosen[cut])):
            return forward(denoiser, x, t, cond)

    if cut == "both":
        method.through_denoisers = False
    else:
        monkeypatch.setattr(Denoiser, "forward", without)
    freeze(method, "generator")
    with pytest.raises(ValueError, match="must be differentiable in x_t"):
        method._generator_loss(Batch(16), rng.generator(0))


def test_the_fake_phase_takes_the_samples_as_data(teacher: str) -> None:
    """No graph back to the generator, even where somebody has left its parameters free."""
    method = build(SIM, teacher=teacher)
    freeze(method, "fake", "generator")
    loss, _ = method._fake_loss(Batch(16), rng.generator(0))
    loss.backward()
    assert all(p.grad is None for p in method.nets["generator"].parameters())
    assert any(p.grad is not None for p in method.nets["fake"].parameters())


def loose_x0(monkeypatch: pytest.MonkeyPatch, method: OneStep, n: int) -> tuple[Tensor, Tensor | None]:
    """Makes the generator's samples a leaf, so that the loss's gradient in x0 itself can be read."""
    with torch.no_grad():
        x0, cond = method.core.generate(n, rng.generator(9))
    x0.requires_grad_()
    monkeypatch.setattr(method.core, "generate", lambda n, gen: (x0, cond))
    return x0, cond


@pytest.mark.parametrize("w", ["const", "sid-l1", "s2"])
def test_diff_instruct_s_gradient_in_x0_is_the_field(monkeypatch: pytest.MonkeyPatch, teacher: str, w: str) -> None:
    """w (D_psi - D_q) / B exactly: no term through the denoisers, although x_t moves with x0."""
    method, seen = build(DI | {"weight": w}, teacher=teacher), []
    randomise(method.nets["fake"], 1, 0.1)
    freeze(method, "generator")

    def watching(x0: Tensor, d_teacher: Tensor, d_fake: Tensor) -> Tensor:
        seen.append((d_teacher, d_fake))
        return diff_instruct(x0, d_teacher, d_fake)

    method.objective = watching
    x0, _ = loose_x0(monkeypatch, method, 64)
    loss, _ = method._generator_loss(Batch(64), rng.generator(1))
    got = torch.autograd.grad(loss, x0)[0]
    ((d_teacher, d_fake),) = seen
    assert not d_teacher.requires_grad, "the activations of two networks are kept for nothing"
    assert not d_fake.requires_grad
    s = times.draw(method.config.noise_generator, method.process, 64, rng.generator(1), CPU).float()
    scale = {"const": torch.ones(64), "s2": s.double() ** -2, "sid-l1": 1 / (x0 - d_teacher).abs().mean(1)}[w]
    assert torch.equal(got, (scale.detach().float() / 64)[:, None] * (d_fake - d_teacher))


def test_sim_s_gradient_in_x0_is_not_the_field(monkeypatch: pytest.MonkeyPatch, teacher: str) -> None:
    """The control: SIM keeps the graph, so its gradient has more terms than the two that stand in the loss."""
    method, seen = build(SIM | {"distance": "l2"}, teacher=teacher), []
    randomise(method.nets["fake"], 1, 0.1)
    freeze(method, "generator")

    def watching(x0: Tensor, d_teacher: Tensor, d_fake: Tensor) -> Tensor:
        seen.append((d_teacher, d_fake))
        return sim(x0, d_teacher, d_fake, distance="l2", c=0.0, path="frozen")

    method.objective = watching
    x0, _ = loose_x0(monkeypatch, method, 64)
    loss, _ = method._generator_loss(Batch(64), rng.generator(1))
    got = torch.autograd.grad(loss, x0)[0]
    ((d_teacher, d_fake),) = seen
    assert d_teacher.requires_grad
    assert d_fake.requires_grad
    field = (d_fake - d_teacher).detach() / 64
    assert (got - field).norm() > 0.1 * field.norm()
