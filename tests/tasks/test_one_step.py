"""The one-step core in the loop: how it starts, which noise it uses, which networks move, what it leaves.

T8, T10, T11, T12 are numbers in our list of mistakes that score implicit matching invites.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gentk.engine import ema, loop, rng
from gentk.engine.generative import Sampler
from gentk.engine.method import Batch, Phase
from gentk.errors import GentkError, RecipeError
from gentk.nets import weights
from gentk.processes import times
from gentk.processes.denoiser import Denoiser, at_sigma
from gentk.processes.models import load
from gentk.recipe.schema import Ema
from gentk.tasks.distill._one_step import OneStep
from tests.tasks.toys import CPU, FLOW, VE, build, fit, freeze, randomise, recipe, watch, write_teacher

SIM: dict[str, Any] = {"name": "sim"}
DI: dict[str, Any] = {"name": "diff-instruct"}


def state(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- T12: the start ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VE, FLOW], ids=["ve", "rectified-flow"])
@pytest.mark.parametrize("net", [{"classes": 0}, {"classes": 3}, {"classes": 3, "name": "unet", "width": 8}], ids=str)
def test_the_generator_starts_as_the_teacher_at_sigma_init(
    tmp_path: Path, process: dict[str, Any], net: dict[str, Any]
) -> None:
    """G(s_init z) is D_q(s_init z, s_init) bit for bit; a wrong level, or z without its scale, is something else."""
    path = write_teacher(tmp_path / "t.safetensors", process=process, **net)
    method = build(SIM | {"sigma_init": 1.5}, teacher=str(path))
    for name in ("fake", "generator"):
        assert same(state(method.nets[name]), state(method.teacher))
        own = {p.data_ptr() for p in method.nets[name].parameters()}
        assert own.isdisjoint(p.data_ptr() for p in method.teacher.parameters()), "the teacher would learn too"
    with torch.no_grad():
        x0, cond = method.core.generate(16, rng.generator(1))
        z = torch.randn((16, *method.model.shape), generator=rng.generator(1))

        def ask(scale: float, s: float) -> Tensor:
            return at_sigma(method.teacher, scale * z, torch.tensor(s), cond)

        t = torch.tensor(1.5 if process is VE else 0.6, dtype=torch.float64)  # s / (1 + s)
        assert torch.equal(x0, method.teacher(float(t) * z, t, cond))  # sigma(t) = t in both processes
        torch.testing.assert_close(x0, ask(1.5, 1.5), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(x0, ask(1.5, 1.51), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(x0, ask(1.0, 1.5), rtol=1e-3, atol=1e-3)
    if net["classes"]:
        assert cond is not None
        assert set(cond.tolist()) <= {0, 1, 2}
    else:
        assert cond is None


def test_the_student_is_drawn_as_it_is_trained(teacher: str) -> None:
    """What `Sampler` calls one step is what the generator phase calls the generator."""
    method = build(SIM, teacher=teacher)
    sampler = method._samplers({"generator": method.nets["generator"]})[1]
    z = rng.noise(4, 0, 6, (2,), purpose="start")
    with torch.no_grad():
        want = at_sigma(method.teacher, 2.5 * z, torch.tensor(2.5), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert sampler.nfe == 1
    torch.testing.assert_close(sampler(6, seed=4), want, rtol=0, atol=1e-6)


def test_labels_are_uniform(teacher: str) -> None:
    """Each of 3 classes a third of 30000 times, within 4 standard deviations of the binomial (82)."""
    method = build(SIM, teacher=teacher)
    with torch.no_grad():
        _, cond = method.core.generate(30_000, rng.generator(0))
    assert cond is not None
    assert (cond.bincount(minlength=4) - torch.tensor([10_000, 10_000, 10_000, 0])).abs().max() < 4 * 82


def test_dropout_is_the_student_s_own(tmp_path: Path) -> None:
    """The teacher's file says dropout 0.3; the copies have the method's, and learn to drop only in train mode."""
    path = write_teacher(tmp_path / "t.safetensors", process=VE, name="unet", width=8, dropout=0.3)

    def rates(net: nn.Module) -> set[float]:
        return {m.p for m in net.modules() if isinstance(m, nn.Dropout)}

    for given, want in (({}, 0.0), ({"dropout": 0.2}, 0.2)):
        method = build(SIM | given, teacher=str(path))
        assert rates(method.nets["generator"]) == rates(method.nets["fake"]) == {want}
        assert rates(method.teacher) == {0.3}
        assert not method.teacher.training


def test_only_a_denoiser_can_teach(teacher: str, tmp_path: Path) -> None:
    method = build(SIM, teacher=teacher)
    header = {k: v for k, v in method.model.header.items() if k not in ("parameters", "bytes")}
    weights.save(tmp_path / "g.safetensors", method.teacher.net, header | {"kind": "generator", "sigma_init": 2.5})
    with pytest.raises(RecipeError, match="is a generator, here a denoiser or energy is needed"):
        build(SIM, teacher=str(tmp_path / "g.safetensors"))


# --- T8: noise --------------------------------------------------------------------------------------------------------


def noises(monkeypatch: pytest.MonkeyPatch, method: OneStep, phase: str, n: int) -> tuple[Tensor, Tensor]:
    """z and eps as the phase uses them, read off the networks' inputs: z = input / s_init, eps = (x_t - x0) / s."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    forward = Denoiser.forward

    def recording(denoiser: Denoiser, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        out = forward(denoiser, x, t, cond)
        calls.append((x.detach(), t.detach(), out.detach()))
        return out

    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "forward", recording)
        loss = method._fake_loss if phase == "fake" else method._generator_loss
        loss(Batch(n), rng.generator(0, phase))
    (x, s, x0), (x_t, level, _) = calls[0], calls[1]
    return x / s, (x_t - x0) / level[:, None]


def correlation(a: Tensor, b: Tensor) -> float:
    """Of standard normal numbers, in standard deviations: the mean of N products has standard deviation 1 / sqrt(N)."""
    return float((a * b).mean()) * math.sqrt(a.numel())


@pytest.mark.parametrize("phase", ["fake", "generator"])
def test_eps_is_independent_of_z(monkeypatch: pytest.MonkeyPatch, teacher: str, phase: str) -> None:
    laws = {"noise_generator": {"name": "lognormal"}, "noise_fake": {"name": "lognormal"}}  # levels of order 1
    method = build(SIM | laws, teacher=teacher)
    z, eps = noises(monkeypatch, method, phase, 4096)
    for noise in (z, eps):
        assert abs(float(noise.mean())) * math.sqrt(noise.numel()) < 4
        assert float(noise.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / noise.numel()))
    assert abs(correlation(z, eps)) < 4
    assert abs(correlation(z, eps.roll(1, 0))) < 4

    def reused(law: Any, n: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
        again = torch.Generator().manual_seed(gen.initial_seed())  # the phase's key, used twice: its first draw is z
        return times.draw(law, method.process, n, gen, CPU), torch.randn((n, 2), generator=again)

    monkeypatch.setattr(method.core, "noise", reused)
    assert correlation(*noises(monkeypatch, method, phase, 4096)) > 50


@pytest.mark.parametrize("k", [1, 3])
def test_every_phase_of_every_step_draws_its_own_noise(teacher: str, tmp_path: Path, k: int) -> None:
    """`fake_steps: k` is k updates of the fake score, then the generator's; noise is keyed by the phase's name."""
    method, drawn = build(SIM | {"fake_steps": k}, teacher=teacher), []
    generate = method.core.generate

    def recording(n: int, gen: torch.Generator) -> tuple[Tensor, Tensor | None]:
        drawn.append(gen.initial_seed())
        return generate(n, gen)

    method.core.generate = recording  # type: ignore[method-assign]
    phases = list(method.phases(0))
    assert [p.nets for p in phases] == [("fake",)] * k + [("generator",)]
    assert len({p.name for p in phases}) == k + 1
    fit(tmp_path / "run", method, steps=2)
    assert len(drawn) == len(set(drawn)) == 2 * (k + 1)
    if k > 1:  # the control: phases of one name share their noise

        def namesakes(step: int) -> Iterator[Phase]:
            return (Phase("fake", p.nets, p.loss) for p in phases[:k])

        drawn.clear()
        method.phases = namesakes  # type: ignore[method-assign]
        fit(tmp_path / "again", method, steps=1)
        assert len(drawn) == k > len(set(drawn))


# --- T10, T11: what moves ---------------------------------------------------------------------------------------------


def test_the_average_is_of_the_generator_alone_and_exact(teacher: str, tmp_path: Path) -> None:
    method = build(SIM, teacher=teacher)
    before = copy.deepcopy(method.nets["generator"])
    result = fit(tmp_path, method, steps=1, half_life=500)
    beta = ema.decay(Ema(half_life=500), 64, 64)
    assert 0 < beta < 1
    assert set(result.averaged) == {"generator"}
    moved = 0.0
    triples = zip(
        *(list(net.parameters()) for net in (result.averaged["generator"], before, method.nets["generator"])),
        strict=True,
    )
    for average, g0, g1 in triples:
        assert torch.equal(average, torch.lerp(g0, g1, 1 - beta))
        moved = max(moved, float((g1 - g0).detach().abs().max()))
    assert moved > 0.009, "Adam's first step is its learning rate, 0.01, where there is a gradient"


@pytest.mark.parametrize("config", [SIM, DI], ids=["sim", "diff-instruct"])
def test_each_phase_moves_its_own_network(teacher: str, tmp_path: Path, config: dict[str, Any]) -> None:
    """The generator's phase leaves no gradient in fake score and teacher, and not a bit of them changed; and so on."""
    method = build(config | {"fake_steps": 2}, teacher=teacher)
    randomise(method.nets["generator"], 1, 0.05)
    held: dict[str, dict[str, Tensor]] = {}
    names: list[str] = []

    def everything() -> dict[str, nn.Module]:
        return {**method.nets, "teacher": method.teacher}

    def before(phase: Phase) -> None:
        held.update({name: state(net) for name, net in everything().items()})

    def after(phase: Phase) -> None:
        names.append(phase.name)
        for name, net in everything().items():
            assert all(p.grad is None for p in net.parameters()), (phase.name, name)
            assert same(held[name], state(net)) == (name not in phase.nets), (phase.name, name)

    watch(method, before, after)
    fit(tmp_path, method, steps=3)
    assert names == ["fake", "fake-2", "generator"] * 3


def test_the_generator_phase_asks_for_no_other_gradient(teacher: str) -> None:
    """As the engine calls it: backward fills the generator's gradients and none else; the fake score is in eval."""
    method = build(SIM, teacher=teacher)
    randomise(method.nets["fake"], 1, 0.05)
    freeze(method, "generator")
    loss, _ = method._generator_loss(Batch(64), rng.generator(0))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.nets["generator"].parameters())
    assert all(p.grad is None for net in (method.nets["fake"], method.teacher) for p in net.parameters())
    assert not method.nets["fake"].training


def test_a_phase_that_moves_the_fake_score_too_would_be_noticed(teacher: str, tmp_path: Path) -> None:
    """Negative control of T11: the generator's loss, let loose on both networks, does change the fake score."""
    method, held = build(SIM, teacher=teacher), {}
    randomise(method.nets["generator"], 1, 0.05)

    def loose(step: int) -> Iterator[Phase]:
        held.update(state(method.nets["fake"]))
        yield Phase("generator", ("generator", "fake"), method._generator_loss)

    method.phases = loose  # type: ignore[method-assign]
    fit(tmp_path, method, steps=1)
    assert not same(held, state(method.nets["fake"]))


def test_interrupted_distillation_goes_on_bit_for_bit(teacher: str, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", build(SIM, teacher=teacher), steps=6, checkpoint_every=3)
    fit(tmp_path / "cut", build(SIM, teacher=teacher), steps=6, checkpoint_every=3)
    newest = tmp_path / "cut" / "checkpoints" / "00000006"
    (newest / "meta.json").unlink()  # a checkpoint that was never finished: the run goes on from step 3
    again = build(SIM, teacher=teacher)
    seen: list[str] = []
    watch(again, lambda phase: None, lambda phase: seen.append(phase.name))
    resumed = fit(tmp_path / "cut", again, steps=6, checkpoint_every=3)
    assert len(seen) == 3 * 2
    for a, b in zip(loop_state(whole), loop_state(resumed), strict=True):
        assert same(a, b)


def loop_state(s: loop.State) -> list[dict[str, Tensor]]:
    return [state(net) for net in (*s.nets.values(), *s.averaged.values())]


# --- what it shows and leaves -----------------------------------------------------------------------------------------


def test_figures_pictures_and_the_exported_generator(teacher: str, tmp_path: Path) -> None:
    measure = {"features": "identity", "n": 64, "steps": 3, "batch": 64, "preview": 64}
    method = build(
        SIM | {"sigma_init": 1.5}, teacher=teacher, measure=measure, reference={"name": "points:ring8", "points": 200}
    )
    randomise(method.nets["generator"], 1, 0.05)
    averaged = {"generator": copy.deepcopy(method.nets["generator"]).eval()}
    shown = method.preview(averaged)
    assert set(shown.metrics) == {"fd", "fd_raw"}
    assert set(shown.pictures) == {"teacher-student", "teacher-fake"}
    result = method.finish(averaged)
    assert result.metrics["nfe_teacher"] == 5
    assert result.metrics["nfe_student"] == 1
    assert result.metrics["fd_ratio"] == result.metrics["fd_student"] / result.metrics["fd_teacher"]
    assert all(math.isfinite(v) for v in result.metrics.values())
    export = result.exports["generator"]
    path = tmp_path / "generator.safetensors"
    weights.save(path, export.net, export.header)
    model = load(str(path), kinds=("generator",), where=CPU)
    assert model.header["sigma_init"] == 1.5
    assert model.header["teacher"] == teacher
    assert same(state(model.net), state(averaged["generator"]))
    assert isinstance(model.net, Denoiser)
    again = Sampler(model.net, (2,), (0, 1, 2), CPU, sigma_init=1.5)(8, seed=0)
    assert torch.equal(again, method._samplers(averaged)[1](8, seed=0))


def test_a_level_that_the_process_does_not_reach_is_refused_before_training(tmp_path: Path) -> None:
    """s_init = 2.5 for a teacher that knows levels up to 2: said when the method is built, not after a night."""
    path = write_teacher(tmp_path / "t.safetensors", process={"name": "ve", "sigma_max": 2.0})
    with pytest.raises(GentkError, match=r"method\.sigma_init: 2\.5 is beyond the teacher's 2"):
        build(SIM, teacher=str(path))


def test_the_recipe_of_the_toys_is_a_recipe() -> None:
    """The helper validates like the loader: what these tests build is what a file could say."""
    assert recipe(SIM).method.distance == "pseudo-huber"
    with pytest.raises(ValueError, match="distnce"):
        recipe(SIM | {"distnce": "l2"})
