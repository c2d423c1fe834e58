"""Distillation with adapters on the teacher's own weights, and with recomputed activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gentk.engine import loop, one_step, rng
from gentk.engine.method import Batch
from gentk.errors import RecipeError
from gentk.nets import weights
from gentk.nets.lora import Adapted
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import load
from gentk.tasks.distill._one_step import OneStep
from tests.tasks.toys import CPU, VE, build, fit, freeze, recipe, write_teacher

LORA: dict[str, Any] = {"rank": 2}
METHODS: list[dict[str, Any]] = [
    {"name": "sim"},
    {"name": "fgm", "path": "full"},
    {"name": "diff-instruct"},
    {"name": "sid", "guidance": {"teacher": 2.0, "fake_train": 1.5, "fake_eval": 1.5}},
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A class-conditional teacher of 8 x 8 images."""
    place = tmp_path_factory.mktemp("teacher") / "t.safetensors"
    net = {"name": "unet", "width": 16, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
    return str(write_teacher(place, process=VE, classes=3, label_dropout=0.1, **net))


def losses(method: OneStep) -> tuple[list[Tensor], list[Tensor]]:
    """The losses of one step's phases, and the generator phase's gradient with respect to its samples."""
    found, grads = [], []
    of = method.core.of

    def kept(z: Tensor, cond: Any) -> Tensor:
        x0 = of(z, cond)
        if torch.is_grad_enabled():
            x0.requires_grad_(True) if x0.is_leaf else x0.retain_grad()
            grads.append(x0)
        return x0

    method.core.of = kept  # type: ignore[method-assign]
    for phase in method.phases(0):
        freeze(method, *phase.nets)
        torch.manual_seed(5)
        loss, _ = phase.loss(Batch(6), rng.generator(phase.name))
        loss.backward()
        found.append(loss.detach())
    return found, [x0.grad for x0 in grads if x0.grad is not None]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["name"])
def test_zero_adapters_are_full_copies_bit_for_bit(images: str, method: dict[str, Any]) -> None:
    """Losses of both phases, dropout included, and what the objective says of the samples."""
    method = method | {"dropout": 0.2}
    full, shared = (build(method, teacher=images, lora=lora) for lora in (None, LORA))
    (a, grad_a), (b, grad_b) = losses(full), losses(shared)
    assert len(a) == len(b) >= 2
    assert len(grad_a) == len(grad_b) == 1
    assert all(torch.equal(x, y) for x, y in zip(a + grad_a, b + grad_b, strict=True))
    with torch.no_grad():
        for p in shared.nets["fake"].parameters():
            p.add_(0.1)
    assert not torch.equal(losses(shared)[0][0], b[0])


def test_one_base_for_all_three_and_only_adapters_move(tmp_path: Path, images: str) -> None:
    method = build({"name": "sim"}, teacher=images, lora=LORA)
    base = {p.data_ptr() for p in method.teacher.parameters()}
    before = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    for name, net in method.nets.items():
        assert isinstance(net, Denoiser)
        assert isinstance(net.net, Adapted)
        assert {p.data_ptr() for p in net.net.body.parameters()} == base, name
        assert sum(p.numel() for p in net.parameters()) < 0.3 * sum(p.numel() for p in method.teacher.parameters())
    starts = [dict(net.named_parameters())["net.adapters.mid/conv0.down"].clone() for net in method.nets.values()]
    assert not torch.equal(*starts), "adapters of their own"
    state = fit(tmp_path / "run", method, steps=3)
    after = method.teacher.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    for net in (*state.nets.values(), *state.averaged.values()):
        assert isinstance(net, Denoiser)
        assert isinstance(net.net, Adapted)
        assert {p.data_ptr() for p in net.net.body.parameters()} == base
        assert all(bool(p.abs().sum() > 0) for p in net.parameters())
    packed = torch.load(next((tmp_path / "run").rglob("state.pt")), weights_only=True)
    held = {k for part in ("nets", "averaged") for states in packed[part].values() for k in states}
    assert all(k.startswith("net.adapters.") for k in held)


def test_resume_is_bitwise(tmp_path: Path, images: str) -> None:
    optim = {n: {"name": "adam", "lr": 1e-2} for n in ("generator", "fake")}  # constant, so that 3 + 3 may be 6

    def constant(folder: str, steps: int) -> loop.State:
        method = build({"name": "sim"}, teacher=images, lora=LORA, optim=optim, train={"steps": 6, "batch": 8})
        return fit(tmp_path / folder, method, steps=steps, checkpoint_every=3)

    whole = constant("a", 6)
    constant("b", 3)
    resumed = constant("b", 6)
    for group in ("nets", "averaged"):
        for name, net in getattr(whole, group).items():
            other = getattr(resumed, group)[name].state_dict()
            assert all(torch.equal(v, other[k]) for k, v in net.state_dict().items())


def test_the_export_is_a_plain_generator(tmp_path: Path, images: str) -> None:
    """Merged: it loads as any generator, and says what the student with its adapters says."""
    method = build({"name": "sim"}, teacher=images, lora=LORA, train={"steps": 3, "batch": 8})
    state = fit(tmp_path / "run", method)
    student = state.averaged["generator"]
    result = method.finish(state.averaged)
    made = result.exports["generator"]
    weights.save(tmp_path / "g.safetensors", made.net, made.header)
    again = load(str(tmp_path / "g.safetensors"), kinds=("generator",), where=CPU)
    assert isinstance(again.net, Denoiser)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2.5
    t, cond = torch.tensor(2.5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    with torch.no_grad():
        wanted, got = student(x, t, cond), again.net(x, t, cond)
        apart = method.teacher(x, t, cond)
    assert (got - wanted).abs().max() < 1e-5 * float(wanted.abs().max()), "float32 rounding of merged weights"
    assert (apart - wanted).abs().max() > 1e-3 * float(wanted.abs().max()), "it has moved"


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("method", [METHODS[0], METHODS[3]], ids=["sim", "sid"])
def test_checkpointing_changes_no_number(
    tmp_path: Path, images: str, method: dict[str, Any], lora: dict[str, Any] | None
) -> None:
    """Losses and weights after three steps, with dropout; teacher, fake score and generator all recompute."""
    own = {"teacher": images, "lora": lora}
    states = []
    for checkpointing in (False, True):
        train = {"steps": 3, "batch": 6, "checkpointing": checkpointing}
        built = build(method | {"dropout": 0.2}, train=train, **own)
        patched = [m for m in built.teacher.modules() if "forward" in vars(m)]
        assert bool(patched) == checkpointing
        states.append(fit(tmp_path / str(checkpointing), built))
    for name, net in states[0].nets.items():
        other = states[1].nets[name].state_dict()
        assert all(torch.equal(v, other[k]) for k, v in net.state_dict().items())


def test_what_cannot_be(tmp_path: Path, images: str) -> None:
    with pytest.raises(RecipeError, match=r"lora\.targets: `to_q`"):
        build({"name": "sim"}, teacher=images, lora={"rank": 2, "targets": ("to_q",)})
    points = write_teacher(tmp_path / "p.safetensors", process=VE)
    with pytest.raises(RecipeError, match=r"train\.checkpointing: none of the networks has blocks"):
        build({"name": "sim"}, teacher=str(points), train={"steps": 1, "batch": 4, "checkpointing": True})


def test_copies_of_a_half_precision_teacher_learn_in_float32(images: str) -> None:
    teacher = load(images, kinds=("denoiser",), where=CPU).net
    assert isinstance(teacher, Denoiser)
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        new = one_step.copies(teacher.to(dtype))
        assert {p.dtype for p in new.parameters()} == {wanted}
        assert {p.dtype for p in teacher.parameters()} == {dtype}
    assert recipe({"name": "sim"}).lora is None, "full copies are the default"
