"""What flows and guidance ask of the one-step core: pure noise as input, velocities near t = 0 in bf16, F4, F6 and F7.

F4, F6, F7 are numbers in our list of mistakes that flow generator matching invites.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gentk.engine import precision, rng
from gentk.engine.draw import starts
from gentk.engine.generative import Sampler
from gentk.engine.method import Batch
from gentk.errors import RecipeError
from gentk.losses import matching
from gentk.nets import weights
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import load
from gentk.processes.process import diffuse
from gentk.recipe import registry
from gentk.solvers import euler
from gentk.tasks.sample._drawing import prepare
from tests.tasks.toys import CPU, FLOW, SIGMA_DATA, VE, build, fit, freeze, gaussian, randomise, write_teacher

FGM: dict[str, Any] = {"name": "fgm"}


@pytest.fixture
def flow(tmp_path: Path) -> str:
    """A class-conditional velocity network of points with random weights."""
    return str(write_teacher(tmp_path / "flow.safetensors", process=FLOW, predicts="flow", classes=3))


@pytest.fixture
def guidable(tmp_path: Path) -> str:
    """One that has learned its call without a label as well."""
    path = tmp_path / "guidable.safetensors"
    return str(write_teacher(path, process=FLOW, predicts="flow", classes=3, label_dropout=0.1))


# --- F4: time runs from data to noise, and velocities point there -----------------------------------------------------


def test_golden_directions_of_a_flow() -> None:
    """At t -> 0 the denoiser is the identity, at t = 1 the data's mean; velocities are noise minus data.

    With v's sign flipped, D(x_1, 1) would be 2 x_1 - mean: not the mean of anything.
    """
    mean, std = torch.tensor([0.5, -0.3]).double(), torch.tensor([0.6, 0.3]).double()
    exact = gaussian(mean, std, FLOW)
    x = torch.randn(8, 2, generator=rng.generator(0), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(exact(x, torch.tensor(1e-6).double()), x, rtol=0, atol=1e-5)
        torch.testing.assert_close(exact(x, torch.tensor(1.0).double()), mean.expand(8, 2), rtol=0, atol=2e-4)

        class Raw(nn.Module):
            def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
                return sign * (x - mean)  # E[x1 - x0 | x_1 = x]

        for sign in (1.0, -1.0):
            end = Denoiser(Raw(), exact.process, "flow", SIGMA_DATA)(x, torch.tensor(1.0).double())
            assert torch.allclose(end, mean.expand(8, 2)) == (sign == 1.0)


def test_one_euler_step_from_noise_is_the_generator_at_t_star_1(flow: str) -> None:
    """t* = 1: x0 = z - v(z, 1), bit for bit one Euler step from t = 1 to 0; another t* is another generator."""
    method = build(FGM | {"t_star": 1.0}, teacher=flow)
    z = torch.randn((16, 2), generator=rng.generator(1))
    with torch.no_grad():
        x0, cond = method.core.generate(16, rng.generator(1))
        grid = torch.tensor([1.0, 0.0], dtype=torch.float64)
        step = euler.solve(method.teacher, method.process, z, grid, torch.zeros_like, cond=cond)
        torch.testing.assert_close(x0, step, rtol=0, atol=1e-6)
        raw = method.teacher.net(z, torch.full((16,), math.log(1e4) / 4), cond)  # n = 1 at t = 1: the input is z
        torch.testing.assert_close(x0, z - raw, rtol=0, atol=1e-6)
        other = build(FGM, teacher=flow).core.generate(16, rng.generator(1))[0]
        assert (other - x0).abs().max() > 1e-2


@pytest.mark.parametrize("t_star", [0.3, 0.714, 1.0])
def test_the_generator_is_the_paper_s(flow: str, t_star: float) -> None:
    """x_in = t* z, x0 = x_in - t* v(x_in, t*)."""
    method = build(FGM | {"t_star": t_star}, teacher=flow)
    z = torch.randn((16, 2), generator=rng.generator(1))
    with torch.no_grad():
        x0, cond = method.core.generate(16, rng.generator(1))
        n = math.sqrt((1 - t_star) ** 2 * SIGMA_DATA**2 + t_star**2)
        label = math.log(min(t_star / (1 - t_star), 1e4) if t_star < 1 else 1e4) / 4
        v = method.teacher.net(t_star * z / n, torch.full((16,), label), cond)
    torch.testing.assert_close(x0, t_star * z - t_star * v, rtol=1e-5, atol=1e-5)


def test_a_generator_from_pure_noise_trains_is_exported_and_drawn(flow: str, tmp_path: Path) -> None:
    """Its noise level is infinite: nothing becomes nan, the header says `inf` in valid JSON, and it is read back."""
    measure = {"features": "identity", "n": 64, "steps": 4, "batch": 64, "solver": "euler", "grid": "time"}
    method = build(
        FGM | {"t_star": 1.0}, teacher=flow, measure=measure, reference={"name": "points:ring8", "points": 400}
    )
    state = fit(tmp_path, method, steps=2)
    assert all(p.isfinite().all() for net in state.nets.values() for p in net.parameters())
    result = method.finish(state.averaged)
    assert (result.metrics["nfe_teacher"], result.metrics["nfe_student"]) == (4, 1)
    export = result.exports["generator"]
    assert export.header["sigma_init"] == "inf"
    path = tmp_path / "generator.safetensors"
    weights.save(path, export.net, export.header)
    model = load(str(path), kinds=("generator",), where=CPU)
    assert isinstance(model.net, Denoiser)
    drawn = Sampler(model.net, (2,), (0, 1, 2), CPU, sigma_init=model.header["sigma_init"])(6, seed=4)
    with torch.no_grad():
        labels = torch.tensor([0, 1, 2, 0, 1, 2])
        want = state.averaged["generator"](starts(4, 0, 6, (2,)), torch.tensor(1.0, dtype=torch.float64), labels)
    torch.testing.assert_close(drawn, want, rtol=0, atol=1e-6)
    section = registry.recipe_schema("sample", "one-step")(
        task="sample", about="a test", size="smoke", model=str(path), method={"name": "one-step"}, seed=4, save=("npz",)
    )
    torch.testing.assert_close(prepare(section, CPU).draw(4, 0, 6, CPU), want, rtol=0, atol=1e-6)


def test_pure_noise_is_beyond_a_diffusion_teacher(teacher: str) -> None:
    with pytest.raises(RecipeError, match="sigma_init: inf is beyond the teacher's 80") as fault:
        build(FGM | {"t_star": 1.0}, teacher=teacher)
    assert "t_star" in fault.value.hint
    assert build(FGM, teacher=teacher).t_init == pytest.approx(0.714 / 0.286)


@pytest.mark.parametrize("t", [1.0, 0.999999999])
def test_the_end_of_the_path_is_no_singularity(flow: str, t: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time that float32 takes for 1: alpha = 0, s = inf; every loss and gradient stays finite."""
    for name in ("fgm", "sim", "sid", "diff-instruct"):
        for weight in ("const", "velocity", "edm", "sid-l1"):
            method = build({"name": name, "weight": weight}, teacher=flow)
            randomise(method.nets["fake"], 1, 0.1)
            noise = method.core.noise
            monkeypatch.setattr(method.core, "noise", lambda law, n, gen, noise=noise: _at(t, noise(law, n, gen)))
            for phase, loss in (("generator", method._generator_loss), ("fake", method._fake_loss)):
                freeze(method, phase)
                value = loss(Batch(8), rng.generator(0))[0]
                value.backward()
                assert value.isfinite()
                assert all(p.grad is None or p.grad.isfinite().all() for p in method.nets[phase].parameters())


def _at(t: float, drawn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.full_like(drawn[0], t), drawn[1]


# --- F6: small times in bf16 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1e-3, 1e-2])
@pytest.mark.parametrize("process", [FLOW, VE], ids=["flow", "edm"])
def test_bf16_near_the_data(t: float, process: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weighted loss and its gradient in x0, sample by sample, under bf16 autocast within 2 % of float64.

    The networks round to bf16; what is divided by t^2 is float32 and does not. The mutant rounds the denoisers' output,
    as a core would that works in the networks' precision.
    """
    predicts, n = "flow" if process is FLOW else "edm", 256
    method = build(FGM, teacher=str(write_teacher(tmp_path / "t.safetensors", process=process, predicts=predicts)))
    randomise(method.nets["fake"], 1, 0.3)
    freeze(method)
    x0, eps = torch.randn((2, n, 2), generator=rng.generator(7))
    own = torch.full((n,), t if process is FLOW else t / (1 - t), dtype=torch.float64)
    forward, objective = Denoiser.forward, method.objective

    def loss_and_gradient(precise: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf, each = x0.to(dtype).requires_grad_(), []
        with monkeypatch.context() as patch, precision.autocast(CPU, precise):
            patch.setattr(method.core, "generate", lambda n, gen: (leaf, None))
            patch.setattr(method.core, "noise", lambda law, n, gen: (own, eps.to(dtype)))
            patch.setattr(method, "objective", lambda *a: (each.append(objective(*a)), each[0])[1])
            loss, _ = method._generator_loss(Batch(n), rng.generator(0))
        return each[0].detach().double(), torch.autograd.grad(loss, leaf)[0].double()

    narrow = loss_and_gradient("bf16", torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "forward", lambda *a: forward(*a).bfloat16().float())
        mutant = loss_and_gradient("bf16", torch.float32)
    for net in (*method.nets.values(), method.teacher):
        net.double()
    exact = loss_and_gradient("fp32", torch.float64)
    for mine, wrong, want in zip(narrow, mutant, exact, strict=True):
        assert float((mine - want).norm() / want.norm()) < 0.02
        assert float((wrong - want).norm() / want.norm()) > 0.03


# --- guidance ---------------------------------------------------------------------------------------------------------


def test_guidance_is_the_denoisers_extrapolation(guidable: str) -> None:
    """D_u + w (D_c - D_u) of the teacher by `teacher`, of the fake score by `fake_eval`, in the generator's loss."""
    seen: list[tuple[Tensor, Tensor]] = []
    scales = {"teacher": 2.5, "fake_eval": 1.5, "label_dropout": 0.2}
    method = build(FGM | {"guidance": scales}, teacher=guidable)
    randomise(method.nets["fake"], 1, 0.1)
    method.objective = lambda x0, q, p: (seen.append((q, p)), (x0 * 0).sum(1))[1]
    with torch.no_grad():
        method._generator_loss(Batch(32), rng.generator(0))
        gen = rng.generator(0)
        x0, cond = method.core.generate(32, gen)
        t, eps = method.core.noise(method.config.noise_generator, 32, gen)
        x_t = diffuse(method.process, x0, t.float(), eps)
        for net, scale, got in ((method.teacher, 2.5, seen[0][0]), (method.nets["fake"], 1.5, seen[0][1])):
            null = net(x_t, t.float(), torch.full_like(cond, 3))
            torch.testing.assert_close(got, null + scale * (net(x_t, t.float(), cond) - null), rtol=1e-4, atol=1e-5)
            assert (got - net(x_t, t.float(), cond)).abs().max() > 1e-2, "the control: unguided"


def _fake_loss(guidance: dict[str, float], teacher: str) -> float:
    method = build(FGM | {"guidance": guidance}, teacher=teacher)
    randomise(method.nets["fake"], 1, 0.1)
    return float(method._fake_loss(Batch(64), rng.generator(0))[0].detach())


def test_the_fake_score_does_not_learn_by_the_teacher_s_guidance(guidable: str) -> None:
    """F7: with `fake_train` off its loss is the same whatever the other scales; with it on it is another one."""
    plain = _fake_loss({}, guidable)
    assert _fake_loss({"teacher": 3.0}, guidable) == plain
    assert _fake_loss({"teacher": 7.5}, guidable) == plain
    hidden = _fake_loss({"label_dropout": 0.5}, guidable)
    assert hidden != plain
    for fake_eval in (2.0, 4.0):
        assert _fake_loss({"teacher": fake_eval, "fake_eval": fake_eval, "label_dropout": 0.5}, guidable) == hidden
    assert abs(_fake_loss({"fake_train": 2.0}, guidable) - plain) > 1e-3


def test_guided_training_fits_the_guided_denoiser(guidable: str) -> None:
    """LSG's `fake_train`: the error is that of D_u + w (D_c - D_u), and its gradient reaches the call without label."""
    method = build(FGM | {"guidance": {"fake_train": 2.0}}, teacher=guidable)
    randomise(method.nets["fake"], 1, 0.1)
    freeze(method, "fake")
    loss, _ = method._fake_loss(Batch(32), rng.generator(0))
    fake = copy.deepcopy(method.nets["fake"])
    gen = rng.generator(0)
    with torch.no_grad():
        x0, cond = method.core.generate(32, gen)
        t, eps = method.core.noise(method.config.noise_fake, 32, gen)
    x_t = diffuse(method.process, x0, t, eps)
    null = fake(x_t, t, None)
    error = (null + 2 * (fake(x_t, t, cond) - null) - x0).square().mean(1) / t.float().square()
    assert float(loss.detach()) == pytest.approx(float(error.mean().detach()), rel=1e-4)
    mine, want = (
        torch.autograd.grad(value, net.net.label.weight)[0]
        for value, net in ((loss, method.nets["fake"]), (error.mean(), fake))
    )
    torch.testing.assert_close(mine, want, rtol=1e-3, atol=1e-4)
    assert mine[3].abs().max() > 0


def test_labels_are_hidden_as_often_as_asked(guidable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(FGM | {"guidance": {"label_dropout": 0.3}}, teacher=guidable)
    seen: list[Tensor] = []

    def watching(denoiser: Any, process: Any, x0: Tensor, t: Tensor, eps: Tensor, cond: Tensor, sd: float) -> Tensor:
        seen.append(cond)
        return x0.sum(1)

    monkeypatch.setattr(matching, "flow", watching)
    method._fake_loss(Batch(20_000), rng.generator(0))
    share = float((seen[0] == 3).double().mean())
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 20_000)


def test_the_shipped_teachers_can_be_guided() -> None:
    """edm-digits is older than its header's `label_dropout`: its recipe, in the header, says 0.1."""
    for teacher in ("edm-digits", "flow-digits"):
        build(FGM | {"guidance": {"teacher": 2.0}}, teacher=teacher)


@pytest.mark.parametrize(
    ("classes", "dropout", "guidance", "match"),
    [
        (0, None, {"teacher": 2.0}, "is unconditional, there is nothing to guide towards"),
        (3, 0.0, {"teacher": 2.0}, "did not learn with label dropout"),
        (3, None, {"fake_train": 2.0}, "did not learn with label dropout"),
        (3, 0.1, {"teacher": 2.0, "fake_eval": 2.0}, "never learns its call without a label"),
    ],
)
def test_guidance_without_ground_is_refused(
    tmp_path: Path, classes: int, dropout: float | None, guidance: dict[str, float], match: str
) -> None:
    path = tmp_path / "t.safetensors"
    write_teacher(path, process=FLOW, predicts="flow", classes=classes, label_dropout=dropout)
    for name in ("fgm", "sim", "sid", "diff-instruct"):
        with pytest.raises(RecipeError, match=match) as fault:
            build({"name": name, "guidance": guidance}, teacher=str(path))
        assert fault.value.hint
    build(FGM, teacher=str(path))
    write_teacher(path, process=FLOW, predicts="flow", classes=3, label_dropout=0.1)
    build(FGM | {"guidance": {"teacher": 2.0, "fake_train": 2.0, "fake_eval": 2.0}}, teacher=str(path))
