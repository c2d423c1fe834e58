"""Text-to-image teachers: twenty steps on tiny random pipelines, resumed bit for bit, exported, loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from gentk.cli.app import app
from gentk.engine import loop, memory, rng
from gentk.engine.method import Batch
from gentk.errors import RecipeError
from gentk.nets import weights
from gentk.nets.lora import Adapted
from gentk.nets.text.prompts import Prompts
from gentk.processes import latent
from gentk.processes.denoiser import Denoiser
from gentk.recipe import registry
from gentk.recipe.schema import Train
from gentk.tasks.distill._one_step import OneStep
from tests.nets import tiny_pipelines
from tests.tasks.toys import build, fit, freeze, recipe

TEXTS = ("a red cube", "a blue ball", "two cats", "a ship")
OPTIM = {name: {"name": "adam", "lr": 1e-3, "betas": (0.0, 0.999)} for name in ("generator", "fake")}
FLOW = {"name": "uniform", "clock": "flow", "shift": 3.0}
# the papers' teachers, each with its method; SD3 with adapters, which is how it fits one device
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sd15": ("diff-instruct", {"guidance": {"teacher": 2.5}}, {}),
    "pixart": ("sim", {"guidance": {"teacher": 4.5, "label_dropout": 0.2, "fake_eval": 1.5}}, {}),
    "sd3": ("fgm", {"noise_generator": FLOW, "noise_fake": FLOW, "fake_steps": 1}, {"lora": {"rank": 2}}),
}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("pipelines")
    return {name: str(getattr(tiny_pipelines, name)(place / name)) for name in CASES}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENTK_CACHE", str(tmp_path / "cache"))


def made(pipelines: dict[str, str], name: str, **own: Any) -> OneStep:
    method, settings, more = CASES[name]
    common: dict[str, Any] = {
        "teacher": pipelines[name],
        "prompts": {"text": TEXTS},
        "optim": OPTIM,
        "train": {"steps": 20, "batch": 2},
    }
    return build({"name": method} | settings | own.pop("method", {}), **common | more | own)


def same(a: loop.State, b: loop.State) -> bool:
    pairs = [
        (x.state_dict(), getattr(b, g)[n].state_dict()) for g in ("nets", "averaged") for n, x in getattr(a, g).items()
    ]
    return all(x.keys() == y.keys() and all(torch.equal(v, y[k]) for k, v in x.items()) for x, y in pairs)


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_resume_export_and_load(tmp_path: Path, pipelines: dict[str, str], name: str) -> None:
    method = made(pipelines, name)
    before = {k: v.clone() for k, v in method.teacher.state_dict().items()}
    state = fit(tmp_path / "whole", method, checkpoint_every=10)
    fit(tmp_path / "halves", made(pipelines, name), steps=10, checkpoint_every=10)
    resumed = fit(tmp_path / "halves", made(pipelines, name), checkpoint_every=10)
    assert same(state, resumed)
    assert all(torch.equal(v, method.teacher.state_dict()[k]) for k, v in before.items()), "the teacher has not moved"
    exported = method.finish(state.averaged).exports["generator"]
    weights.save(tmp_path / "g.safetensors", exported.net, exported.header)
    again = latent.load(str(tmp_path / "g.safetensors"), where=torch.device("cpu"))
    assert again.sigma_init == pytest.approx(method.config.sigma_init)
    assert again.header["teacher"] == pipelines[name]
    cond = method.taught.conditions.take(torch.tensor([0, 1, 2]), torch.device("cpu"))
    z = torch.randn(3, *method.model.shape, generator=torch.Generator().manual_seed(0))
    x, t = float(method.process.sigma(method.t_init)) * z, method.t_init
    with torch.no_grad():
        wanted, got, start = (net(x, t, cond) for net in (state.averaged["generator"], again.denoiser, method.teacher))
    scale = float(wanted.abs().max())
    assert (got - wanted).abs().max() < 1e-5 * scale, "float32 rounding, of merged weights where there are adapters"
    assert (start - wanted).abs().max() > 1e-3 * scale, "it has moved"


@pytest.mark.parametrize("name", CASES)
def test_zero_adapters_are_full_copies_bit_for_bit(pipelines: dict[str, str], name: str) -> None:
    """Losses of both phases on diffusers' networks, and that gradients are the adapters' alone."""

    def losses(method: OneStep) -> list[Tensor]:
        found = []
        for phase in method.phases(0):
            freeze(method, *phase.nets)
            loss, _ = phase.loss(Batch(2), rng.generator(phase.name))
            loss.backward()
            found.append(loss.detach())
        return found

    full, shared = (made(pipelines, name, lora=lora) for lora in (None, {"rank": 2}))
    assert all(torch.equal(a, b) for a, b in zip(losses(full), losses(shared), strict=True))
    base = {p.data_ptr() for p in shared.teacher.parameters()}
    for net in shared.nets.values():
        assert isinstance(net, Denoiser)
        assert isinstance(net.net, Adapted)
        assert {p.data_ptr() for p in net.net.body.parameters()} == base
        assert all(p.grad is None for p in net.net.body.parameters())
    if name != "sd15":  # there every attention is one of `to_q`, ...; and the others are named alike
        narrow = made(pipelines, name, lora={"rank": 2, "targets": ("to_q", "to_k", "to_v")})
        few, all_of = (sum(p.numel() for p in m.nets["fake"].parameters()) for m in (narrow, shared))
        assert 0 < few < all_of


@pytest.mark.parametrize("name", CASES)
def test_checkpointing_changes_no_number(pipelines: dict[str, str], name: str) -> None:
    """Gradients of both phases with diffusers' own switch, teacher and copies alike."""

    def gradients(**train: Any) -> list[Tensor]:
        method = made(pipelines, name, lora=None, train={"steps": 20, "batch": 2} | train)
        found = []
        for phase in method.phases(0):
            freeze(method, *phase.nets)
            loss, _ = phase.loss(Batch(2), rng.generator(phase.name))
            found += torch.autograd.grad(loss, list(method.nets[phase.nets[0]].parameters()), allow_unused=True)
        return [g for g in found if g is not None]

    for a, b in zip(gradients(), gradients(checkpointing=True), strict=True):
        assert torch.equal(a, b)


def test_what_it_shows(pipelines: dict[str, str]) -> None:
    method = made(pipelines, "pixart")
    shown = method.preview({"generator": method.nets["generator"].eval()})
    assert set(shown.pictures) == {"teacher-student", "teacher-fake"}
    images = method.taught.seen(torch.randn(5, *method.model.shape), torch.device("cpu"))
    assert images.shape == (5, 3, 16, 16)
    assert images.abs().max() <= 1
    assert isinstance(method.taught.cycle, Prompts)
    assert len(method.taught.cycle) == len(TEXTS)
    # the teacher is shown as it teaches: guided
    plain, strong = (
        made(pipelines, "pixart", method={"guidance": {"teacher": scale}})._samplers(
            {"generator": method.nets["generator"]}
        )[0](2, 0)
        for scale in (1.0, 4.5)
    )
    assert not torch.allclose(plain, strong)


def test_a_bfloat16_teacher_and_float32_learners(pipelines: dict[str, str]) -> None:
    """Full copies learn in float32, adapters too, on the teacher's bfloat16 weights."""
    low = {"dtype": "bfloat16"}
    for lora in (None, {"rank": 2}):
        method = made(pipelines, "pixart", latent=low, lora=lora)
        assert {p.dtype for p in method.teacher.parameters()} == {torch.bfloat16}
        assert all({p.dtype for p in net.parameters()} == {torch.float32} for net in method.nets.values())
        for phase in method.phases(0):
            freeze(method, *phase.nets)
            loss, _ = phase.loss(Batch(2), rng.generator(phase.name))
            loss.backward()
            assert bool(torch.isfinite(loss))


def test_a_plan_without_numbers(pipelines: dict[str, str]) -> None:
    """Built on the meta device: the teacher's weights once with adapters, the VAE, and activations of all three."""
    name, settings, _ = CASES["pixart"]
    told = recipe(
        {"name": name} | settings, teacher=pipelines["pixart"], prompts={"text": TEXTS}, lora={"rank": 2}, optim=OPTIM
    )
    method = registry.method_module("distill", name).build(told, memory.META)
    plan = memory.plan(method, Train(steps=1, batch=4, checkpointing=True, precision="bf16"), rules="cuda")
    assert method.codec is not None
    held = 4 * sum(p.numel() for net in (method.teacher, method.codec) for p in net.parameters())
    assert held <= plan.frozen < 1.2 * held, "the teacher and the VAE; times and prompts come on top"
    assert set(plan.phases[-1].kept) == {"teacher", "generator", "fake"}


def test_the_command_line(tmp_path: Path, pipelines: dict[str, str]) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red cube\n" + "long " * 200 + "\n")
    words = ["--set", "train.steps=2", "--set", "train.batch=2", "--set", "train.accumulate=1", "--set", "latent={}"]
    words += ["--set", "train.precision=fp32", "--quiet"]

    def gentk(*more: str) -> Any:
        return CliRunner().invoke(app, ["distill", "sim", "--teacher", pipelines["pixart"], *words, *more])

    done = gentk("--prompts", str(file), "--out", str(tmp_path / "run"))
    assert done.exit_code == 0, done.stderr
    assert "1 prompts are longer than the 120 tokens" in done.stderr
    assert (tmp_path / "run" / "export" / "generator.safetensors").is_file()
    shown = {p.name for p in (tmp_path / "run" / "samples").iterdir()}
    assert shown == {f"teacher-{of}-0000000{step}.png" for of in ("fake", "student") for step in (0, 2)}
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("a\n\nb\n")
    for more, said in (
        (("--prompts", str(tmp_path / "empty.txt")), "empty.txt: empty"),
        (("--prompts", str(tmp_path / "blank.txt")), "line 2 is blank"),
        (("--prompts", str(file), "--set", "measure={features: identity}"), "no data to compare"),
        (("--prompts", str(file), "--set", "latent.size=17"), "latent.size: 17 pixels"),
    ):
        failed = gentk(*more, "--out", str(tmp_path / "bad"))
        assert failed.exit_code == 2, failed.output
        assert said in failed.stderr


def test_what_cannot_be(tmp_path: Path, pipelines: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="by prompts"):
        made(pipelines, "sd15", prompts=None)
    with pytest.raises(RecipeError, match="is no text-to-image model"):
        build({"name": "sim"}, teacher="edm-digits", prompts={"text": TEXTS})
    with pytest.raises(RecipeError, match="never learns its call without a label"):
        made(pipelines, "sd15", method={"guidance": {"fake_eval": 2.0}})
    method = made(pipelines, "sd15")
    exported = method.finish({"generator": method.nets["generator"]}).exports["generator"]
    weights.save(tmp_path / "g.safetensors", exported.net, exported.header)
    with pytest.raises(RecipeError, match="is a one-step generator"):
        made(pipelines | {"sd15": str(tmp_path / "g.safetensors")}, "sd15")
