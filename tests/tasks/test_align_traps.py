"""The mistakes that reward alignment invites, R1 to R14 of our list, each as a test that the mistake fails.

R5, R6 and R13 are in `test_align_gaussian`, with their numbers.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gentk.engine import rng
from gentk.engine.method import Batch
from gentk.engine.precision import autocast
from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.processes.models import load
from gentk.tasks.align._aligning import Aligning
from gentk.tasks.align._rewards import checksum, inside
from tests.tasks.align_toys import build, far, recipe, write_generator
from tests.tasks.toys import CPU, VE, fit, freeze, randomise, write_teacher

DIGITS = {"generator": "sim-digits", "teacher": "edm-digits", "train": {"steps": 4, "batch": 16}}
CLASS = {"name": "class", "classifier": "classifier-digits"}


def user(name: str) -> tuple[dict[str, Any], ...]:
    return ({"name": "function", "of": f"tests.tasks.align_toys:{name}"},)


@pytest.fixture
def points(tmp_path: Path) -> dict[str, Any]:
    """A class-conditional generator of points and its reference, which knows no label in a tenth of its calls."""
    teacher = write_teacher(tmp_path / "teacher.safetensors", process=VE, classes=3, label_dropout=0.1)
    generator = write_generator(tmp_path / "generator.safetensors", teacher, move=0.1, seed=1)
    return {"generator": str(generator), "teacher": str(teacher)}


def made(points: dict[str, Any], **own: Any) -> Aligning:
    """The alignment of those points to `far`."""
    settings = {"name": "dipp", "rewards": user("far"), "alpha_rew": 1.0, "warmup": 0}
    sections = {k: own.pop(k) for k in ("train", "optim") if k in own}
    return build(recipe(settings | own, **points, **sections))


# --- R1, R8: what a reward may be -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("for_people", "not differentiable: it returned ndarray, not a tensor"),
        ("cut", "not differentiable: no gradient reaches the samples"),
        ("rounded", "its gradient is zero everywhere"),
        ("one_number", r"returned shape \(\), expected \(64,\)"),
        ("overflowing", "not finite on the generator's own samples"),
        ("wrong", "KeyError: 'palette'"),
    ],
)
def test_r1_a_reward_that_pulls_nowhere_is_refused(points: dict[str, Any], name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        made(points, rewards=user(name))
    assert str(caught.value).startswith("method.rewards[0]: `tests.tasks.align_toys:")
    made(points)  # the control


def test_r1_a_differentiable_reward_reaches_the_samples(points: dict[str, Any]) -> None:
    """d far / dx = -2 (x - 2), over the batch's mean."""
    method = made(points)
    x0, cond = method.core.generate(32, rng.generator(0))
    rewarded, _, _ = method.pulls(x0, cond, rng.generator(0))
    torch.testing.assert_close(rewarded, -2 * (x0.detach() - 2) / 32)


def test_r8_a_reward_that_turns_nan_stops_the_run_and_names_the_phase(points: dict[str, Any], tmp_path: Path) -> None:
    quick = {k: {"name": "adam", "lr": 0.3} for k in ("generator", "fake")}
    method = made(points, rewards=user("fragile"), optim=quick)
    with pytest.raises(GentkError, match=r"phase `generator`: the (loss|gradient) is not finite"):
        fit(tmp_path, method, steps=60)  # type: ignore[arg-type]


def test_r8_rewards_keep_their_precision_under_bf16() -> None:
    """The networks run under autocast, the reward and the decoder before it do not: its value is float32's to a bit."""
    method = build(recipe({"name": "dipp", "rewards": (CLASS,), "alpha_rew": 1.0}, **DIGITS))
    randomise(method.nets["fake"], 2, 0.1)
    x0, cond = method.core.generate(16, rng.generator(0))
    wide = method.pulls(x0, cond, rng.generator(0))
    with autocast(CPU, "bf16"):
        narrow = method.pulls(x0, cond, rng.generator(0))
        rounded = method.rewards(method.images(x0), cond)[0].mean()
    assert torch.equal(wide[0], narrow[0])
    assert torch.equal(wide[2]["reward"], narrow[2]["reward"])
    assert not torch.equal(wide[1], narrow[1]), "the control: the score networks are rounded"
    assert not torch.equal(rounded, wide[2]["reward"])


# --- R2, R4: sign and size --------------------------------------------------------------------------------------------


def gained(method: Aligning, sign: float = 1.0) -> float:
    """What one small step against the generator's loss does to the reward at fixed noise."""
    z, numbers = rng.noise(0, 0, 64, (2,)), torch.arange(64) % 3
    if sign < 0:
        rewards = method.rewards
        method.rewards = lambda x, cond: (-rewards(x, cond)[0], {})  # type: ignore[assignment,return-value]
    freeze(method, "generator")  # type: ignore[arg-type]
    loss, _ = method._generator_loss(Batch(256), rng.generator(0))
    parameters = list(method.nets["generator"].parameters())
    gradients = torch.autograd.grad(loss, parameters)
    before = far(method.core.of(z, numbers), None).mean()
    with torch.no_grad():
        for p, g in zip(parameters, gradients, strict=True):
            p -= 1e-4 * g
    return float((far(method.core.of(z, numbers), None).mean() - before).detach())


def test_r2_a_step_raises_the_reward(points: dict[str, Any]) -> None:
    assert gained(made(points, alpha_rew=10.0)) > 0
    assert gained(made(points, alpha_rew=10.0), sign=-1) < 0, "the control: a flipped sign"


def test_r4_the_ratio_is_of_the_gradients_at_the_samples(points: dict[str, Any]) -> None:
    """|alpha dr/dx0| / |dL/dx0|: w sg[D_psi - D_ref] summed over dimensions, both averaged over samples."""
    method = made(points, alpha_rew=3.0, weight="s2")
    randomise(method.nets["fake"], 2, 0.1)
    _, figures = method._generator_loss(Batch(64), rng.generator(4))
    gen = rng.generator(4)
    x0, cond = method.core.generate(64, gen)
    seen = method.core.compare(x0.detach(), cond, gen, law=method.config.noise_generator)
    held = (seen.d_fake - seen.d_teacher) / seen.s.square()[:, None].float() / 64
    pull = 3 * 2 * (x0 - 2) / 64
    want = float((pull.norm() / held.norm()).detach())
    assert float(figures["ratio"]) == pytest.approx(want, rel=1e-4)
    # a divergence averaged over dimensions, as in pseudo-target losses, would be off by their number, here 2
    assert float(figures["ratio"]) != pytest.approx(want * 2, rel=0.1)


def test_r4_auto_sets_the_ratio_that_is_asked_for(points: dict[str, Any], tmp_path: Path) -> None:
    """Found at the end of the warm-up, which moves nothing but the assistant; then it stays."""
    still = {"fake": {"name": "adam", "lr": 1e-2}, "generator": {"name": "adam", "lr": 1e-12}}
    found = {}
    for ratio in (0.25, 2.0):
        method = made(points, alpha_rew="auto", ratio=ratio, warmup=5, optim=still)
        before = copy.deepcopy(method.nets["generator"])
        fit(tmp_path / f"{ratio}", method, steps=5)  # type: ignore[arg-type]
        assert all(map(torch.equal, method.nets["generator"].parameters(), before.parameters()))
        assert math.isnan(method.alpha)
        method = made(points, alpha_rew="auto", ratio=ratio, warmup=5, optim=still)
        fit(tmp_path / f"on{ratio}", method, steps=6)  # type: ignore[arg-type]
        found[ratio] = method.alpha
        _, figures = method._generator_loss(Batch(512), rng.generator(9))
        assert float(figures["ratio"]) == pytest.approx(ratio, rel=0.3), "8 batches of 64 against one of 512"
        list(method.phases(6))
        assert method.alpha == found[ratio]
    assert found[2.0] == pytest.approx(8 * found[0.25], rel=1e-6)


# --- R3, R9, R10: the way to the reward -------------------------------------------------------------------------------


def test_r3_a_clamp_lets_the_gradient_through() -> None:
    x = torch.tensor([[-1.5, -0.5, 0.5, 1.5]], requires_grad=True)
    seen = inside(x)
    assert seen.tolist() == [[-1.0, -0.5, 0.5, 1.0]]
    assert torch.autograd.grad(seen.sum(), x)[0].tolist() == [[1.0, 1.0, 1.0, 1.0]]
    assert torch.autograd.grad(x.clamp(-1, 1).sum(), x)[0].tolist() == [[0.0, 1.0, 1.0, 0.0]], "the mistake"


def test_r3_pixels_beyond_white_still_feel_brightness() -> None:
    method = build(recipe({"name": "dipp", "rewards": ({"name": "brightness"},), "alpha_rew": 1.0}, **DIGITS))
    x0 = torch.full((2, 1, 8, 8), 1.2)
    rewarded, _, figures = method.pulls(x0, torch.tensor([0, 1]), rng.generator(0))
    assert float(figures["reward"]) == 1
    torch.testing.assert_close(rewarded, torch.full_like(x0, 0.5 / 64 / 2))


def test_r10_the_reward_stays_what_it_was(tmp_path: Path) -> None:
    method = build(recipe({"name": "dipp", "rewards": (CLASS,), "alpha_rew": 1.0, "warmup": 0}, **DIGITS))
    (net,) = method.rewards.nets
    before = checksum([net])
    fit(tmp_path, method, steps=10, checkpoint_every=10)  # type: ignore[arg-type]
    assert checksum([net]) == before
    assert not net.training
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    with torch.no_grad():  # the control: the smallest step of the last bias shows
        net.head.bias[0] += 1e-4
    assert checksum([net]) != before


def test_class_reward_is_the_log_probability_of_the_class_asked_for() -> None:
    method = build(recipe({"name": "dipp", "rewards": (CLASS,), "alpha_rew": 1.0}, **DIGITS))
    x0, cond = method.core.generate(16, rng.generator(0))
    total, parts = method.rewards(method.images(x0), cond)
    net = load("classifier-digits", kinds=("classifier",), where=CPU).net
    logits = net(x0.clamp(-1, 1))
    want = logits[torch.arange(16), cond] - logits.logsumexp(1)
    torch.testing.assert_close(total, want, rtol=1e-5, atol=1e-5)  # of logits about 10, in float32
    assert set(parts) == {"class"}


def test_a_sum_is_weighted_normalised_and_capped() -> None:
    both = (
        {"name": "brightness", "weight": 2.0, "mean": 0.5, "std": 0.25, "cap": 0.3},
        CLASS | {"weight": 0.5, "target": 3},
    )
    method = build(recipe({"name": "dipp", "rewards": both, "alpha_rew": 1.0}, **DIGITS))
    x = torch.stack([torch.full((1, 8, 8), v) for v in (-0.5, 0.1, 0.9)])
    total, parts = method.rewards(x, torch.tensor([0, 1, 2]))
    bright, logs = (x.mean((1, 2, 3)) + 1) / 2, parts["class"]
    capped = ((bright - 0.5) / 0.25).clamp(max=0.3)
    assert capped.tolist() != ((bright - 0.5) / 0.25).tolist()
    torch.testing.assert_close(total, 2 * capped + 0.5 * logs)
    net = load("classifier-digits", kinds=("classifier",), where=CPU).net
    torch.testing.assert_close(logs, net(x).log_softmax(1)[:, 3], rtol=1e-5, atol=1e-6)


# --- R7, R12, R14: what learns, from what, and from where -------------------------------------------------------------


def test_r7_guidance_is_the_reference_s_alone(points: dict[str, Any]) -> None:
    """The assistant's loss is the same bits whatever alpha_cfg is, and its labels are never hidden."""
    losses = [made(points, alpha_cfg=omega)._fake_loss(Batch(64), rng.generator(0))[0] for omega in (0.0, 3.0)]
    assert torch.equal(*losses)
    method = made(points)
    law, asked = method.config.noise_fake, []
    fake = method.nets["fake"]
    fake.register_forward_hook(lambda net, given, out: asked.append(given[2]))
    mine = method.core.fit_fake(64, rng.generator(0), law=law, loss="edm")
    assert torch.equal(mine, losses[0])
    assert len(asked) == 1
    assert set(asked[0].tolist()) <= {0, 1, 2}
    assert not torch.equal(method.core.fit_fake(64, rng.generator(0), law=law, loss="edm", scale=4.0), mine)


def test_r7_the_empty_condition_is_one_for_all(points: dict[str, Any]) -> None:
    """Unguided, the student's loss at alpha_cfg = -1 asks the reference without a label, as a solver would."""
    method = made(points, alpha_cfg=-1.0)
    asked: list[Any] = []
    method.core.teacher.register_forward_hook(lambda net, given, out: asked.append(given[2]))
    method._generator_loss(Batch(8), rng.generator(0))
    assert asked == [None]


def test_r12_held_out_classes_and_noise_stay_unseen(points: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    method = made(points, held_out=(1,))
    _, cond = method.core.generate(3000, rng.generator(0))
    assert set(cond.tolist()) == {0, 2}
    assert abs(int((cond == 0).sum()) - 1500) < 4 * 27.4  # binomial
    seen = method.watcher.start
    samples = method.watcher.draw(method.nets["generator"], 64)
    values = far(samples, None)
    numbers = torch.arange(len(samples)) % 3
    assert seen["reward_held_out"] == pytest.approx(float(values[numbers == 1].mean()), rel=1e-5)
    assert seen["reward"] == pytest.approx(float(values[numbers != 1].mean()), rel=1e-5)
    watched = {tuple(row) for row in rng.noise(0, 0, 64, (2,), purpose="start").tolist()}
    drawn: list[Tensor] = []
    of = method.core.of
    monkeypatch.setattr(method.core, "of", lambda z, cond: (drawn.append(z), of(z, cond))[1])
    for step in range(3):
        for phase in method.phases(step):
            phase.loss(Batch(64), rng.generator(0, step, phase.name, 0))
    assert len(drawn) == 6
    assert watched.isdisjoint(tuple(row) for z in drawn for row in z.tolist())


def states(state: Any) -> list[Tensor]:
    nets = [*state.nets.values(), *state.averaged.values()]
    return [v for net in nets for v in net.state_dict().values()]


def test_r14_a_resumed_run_goes_on_bit_for_bit(
    points: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 + 20 steps are 40, with an alpha_rew found at step 10; without the assistant's moments they are not."""
    settings = {"alpha_rew": "auto", "warmup": 10}
    whole = fit(tmp_path / "whole", made(points, **settings), steps=40, checkpoint_every=20)  # type: ignore[arg-type]

    def again(name: str) -> Any:
        folder = tmp_path / name
        fit(folder, made(points, **settings), steps=40, checkpoint_every=20)  # type: ignore[arg-type]
        (folder / "checkpoints" / "00000040" / "meta.json").unlink()  # a kill came before it was whole
        return fit(folder, made(points, **settings), steps=40, checkpoint_every=20)  # type: ignore[arg-type]

    assert all(map(torch.equal, states(whole), states(again("cut"))))
    step, calls = torch.optim.Adam.step, iter(range(1000))

    def forgetful(self: Any, *given: Any, **named: Any) -> Any:
        if next(calls) == 70:  # those of the first run: 40 updates of the assistant, 30 of the generator
            self.state.clear()
        return step(self, *given, **named)

    monkeypatch.setattr(torch.optim.Adam, "step", forgetful)
    assert not all(map(torch.equal, states(whole), states(again("spoilt"))))


# --- what is absent or does not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"rewards": ({"name": "class", "classifier": "no-such"},)}, "no model `no-such`"),
        ({"rewards": ({"name": "function", "of": "no_such_module:f"},)}, "no module `no_such_module`"),
    ],
)
def test_what_is_absent_is_named(own: dict[str, Any], words: str) -> None:
    with pytest.raises(MissingAsset, match=words):
        build(recipe({"name": "dipp", "alpha_rew": 1.0} | own, **DIGITS))


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"rewards": ({"name": "function", "of": "tests.tasks.align_toys:nothing"},)}, "has no function `nothing`"),
        ({"rewards": (CLASS | {"target": 10},)}, r"target: 10 is not one of 10 classes"),
        ({"held_out": (10,)}, "10 is not one of 10 classes"),
        ({"held_out": tuple(range(10))}, "no class is left"),
        ({"rewards": ({"name": "clip", "weights": "x", "prompts": ("one",)},)}, "1 for 10 classes"),
    ],
)
def test_what_does_not_fit_is_refused(own: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build(recipe({"name": "dipp", "alpha_rew": 1.0, "rewards": (CLASS,)} | own, **DIGITS))


def test_guidance_needs_a_reference_that_knows_no_label(points: dict[str, Any], tmp_path: Path) -> None:
    """A table of the row "no label" that was never trained would guide towards noise."""
    for classes, words in ((3, "did not learn with label dropout"), (0, "there is nothing to guide towards")):
        teacher = write_teacher(tmp_path / f"{classes}.safetensors", process=VE, classes=classes)
        generator = write_generator(tmp_path / f"g{classes}.safetensors", teacher)
        with pytest.raises(RecipeError, match=words):
            made({"generator": str(generator), "teacher": str(teacher)}, alpha_cfg=1.5)
    made(points, alpha_cfg=1.5)


def test_a_reference_of_another_kind_is_refused(points: dict[str, Any]) -> None:
    settings = {"name": "dipp", "alpha_rew": 1.0}
    with pytest.raises(RecipeError, match="`edm-digits` has samples of shape"):
        build(recipe(settings, **points | {"teacher": "edm-digits"}))
    with pytest.raises(RecipeError, match=r"`flow-digits` has the process .*, the generator `sim-digits`"):
        build(recipe(settings, **DIGITS | {"teacher": "flow-digits"}))
    with pytest.raises(RecipeError, match="is a denoiser, here a generator is needed"):
        build(recipe(settings, **DIGITS | {"generator": "edm-digits"}))
    assert build(recipe(settings | {"rewards": user("far")}, **points | {"teacher": None})).reference.name


def test_the_reward_alone_needs_a_factor() -> None:
    for alpha in ("auto", 0.0):
        with pytest.raises(ValueError, match="leash 0 leaves the reward alone"):
            recipe({"name": "dipp", "leash": 0, "alpha_rew": alpha})
