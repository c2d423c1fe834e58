"""Alignment of text-to-image models: prompts to networks and rewards, latents decoded on the way, resume and export.

The pipelines are random and tiny, and are made here.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from gentk.cli.app import app
from gentk.engine import memory, rng
from gentk.engine.method import Batch
from gentk.errors import RecipeError, RunFailed
from gentk.nets import weights
from gentk.processes import latent
from gentk.rewards import image_reward
from gentk.tasks.align import _rewards
from gentk.tasks.align._aligning import Aligning
from gentk.tasks.align._subjects import Said, Sayings
from tests.engine.allocator import recorded
from tests.nets import tiny_pipelines
from tests.rewards.test_image_reward import WORDS, published
from tests.tasks.align_toys import build, recipe
from tests.tasks.toys import CPU, fit

PROMPTS = ("a red cube", "two cats on a mat", "a blue ball")
HELD = ("a green tree",)
asked: list[tuple[tuple[str, ...], tuple[int, ...]]] = []


def wordy(x: Tensor, cond: Any) -> Tensor:
    """Brightness times the number of words: what a reward of image and prompt sees is what it should see."""
    asked.append((cond.texts, tuple(x.shape)))
    return (x.flatten(1).mean(1) + 1) * torch.tensor([float(len(t.split())) for t in cond.texts])


FLOW = {"name": "uniform", "clock": "flow", "shift": 3.0}
# the papers' models and SD3, each by one of the two methods; side of an image, shape of its latents
CASES: dict[str, tuple[dict[str, Any], int, tuple[int, int, int]]] = {
    "sd15": ({"name": "dipp", "alpha_cfg": 1.5}, 16, (4, 8, 8)),
    "pixart": ({"name": "di-star", "alpha_cfg": 4.5}, 16, (4, 8, 8)),
    "sd3": (
        {"name": "dipp", "alpha_cfg": 6.0, "noise_generator": FLOW, "noise_fake": FLOW, "fake_loss": "flow"},
        32,
        (4, 16, 16),
    ),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name of a case -> the folder of its pipeline, made when it is first asked for."""
    root = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTK_CACHE", str(root / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield cache(lambda name: str(getattr(tiny_pipelines, name)(root / name)))


@pytest.fixture
def place(places: Any) -> str:
    """The tiny Stable Diffusion 1.5."""
    found: str = places("sd15")
    return found


def made(place: str, method: dict[str, Any] | None = None, where: torch.device = CPU, **own: Any) -> Aligning:
    """The method of the pipeline's case, which starts as its own teacher; DI++ for other generators."""
    settings = {
        "name": "dipp",
        "rewards": ({"name": "function", "of": "tests.tasks.test_align_text:wordy"},),
        "alpha_rew": "auto",
        "alpha_cfg": 1.5,
        "warmup": 2,
        "sigma_init": 2.5,
        "noise_generator": {"name": "uniform"},
        "noise_fake": {"name": "uniform"},
        "watch": {"samples": 8},
    }
    settings |= CASES.get(Path(place).name, ({},))[0]
    usual = {
        "generator": place,
        "teacher": None,
        "prompts": {"text": PROMPTS},
        "held_out_prompts": {"text": HELD},
        "train": {"steps": 20, "batch": 4},
        "optim": {n: {"name": "adam", "lr": 1e-3, "betas": (0.0, 0.999)} for n in ("generator", "fake")},
    }
    return build(recipe(settings | (method or {}), **usual | own), where)


@pytest.mark.parametrize("name", CASES)
def test_prompts_reach_networks_and_rewards(places: Any, name: str) -> None:
    place, (_, side, shape) = places(name), CASES[name]
    asked.clear()
    method = made(place)
    assert method.rewards.terms[0].name.endswith(":wordy")
    x0, cond = method.core.generate(4, rng.generator(0))
    assert x0.shape == (4, *shape)
    assert isinstance(cond, Said)
    assert len(cond) == len(cond.texts) == 4
    assert set(cond.texts) <= set(PROMPTS)
    both = latent.load(place, where=CPU)
    want = both.prompter.encode(list(cond.texts), CPU)
    assert cond.tensors().keys() == want.tensors().keys()
    for key, value in want.tensors().items():
        torch.testing.assert_close(cond.tensors()[key], value)
    asked.clear()
    rewarded, _, figures = method.pulls(x0, cond, rng.generator(1))
    assert asked == [(cond.texts, (4, 3, side, side))], "the decoded image, not the latent"
    leaf = x0.detach().requires_grad_()  # by hand: decode, straight through the clamp, reward
    image = both.codec.decode(leaf)
    words = torch.tensor([float(len(t.split())) for t in cond.texts])
    value = ((image.flatten(1).mean(1) + 1) * words).mean()
    torch.testing.assert_close(rewarded, torch.autograd.grad(value, leaf)[0], rtol=1e-4, atol=1e-7)
    clamped = ((image.clamp(-1, 1).flatten(1).mean(1) + 1) * words).mean()
    assert float(figures["reward"]) == pytest.approx(float(clamped.detach()), rel=1e-5)


def test_training_asks_for_no_held_out_prompt(place: str) -> None:
    method = made(place)
    asked.clear()
    for k in range(20):
        method.pulls(*method.core.generate(4, rng.generator(k)), rng.generator(k))
    assert {text for texts, _ in asked for text in texts} == set(PROMPTS)
    asked.clear()
    seen, _ = method.watcher._look(method.nets["generator"])
    assert [text for texts, _ in asked for text in texts] == [*PROMPTS, *HELD] * 2, "eight samples, prompts in turn"
    assert {"reward", "reward_held_out", "spread"} <= set(seen)


def test_of_many_prompts_the_last_tenth_is_held_out(place: str) -> None:
    texts = tuple(f"{k} cats" for k in range(25))
    method = made(place, {"watch": {"samples": 36}}, prompts={"text": texts}, held_out_prompts=None)
    assert isinstance(method.given.learned, Sayings)
    assert isinstance(method.given.watched, Sayings)
    assert method.given.learned.of.texts == texts[:23]
    assert method.given.watched.of.texts == (*texts[:16], *texts[23:])
    assert method.given.held.tolist() == [False] * 16 + [True] * 2
    repeated = tuple(f"{k % 12} cats" for k in range(25))
    with pytest.raises(RecipeError, match="training asks for 2 of them"):
        made(place, prompts={"text": repeated}, held_out_prompts=None)


def test_by_the_command_line(place: str, tmp_path: Path) -> None:
    """The recipe of Stable Diffusion is found for a folder of its kind; two steps of it, and its plan as it stands."""
    (tmp_path / "prompts.txt").write_text("\n".join([*(f"{k} cats" for k in range(11)), "long " * 200]))
    sets = (
        "train.steps=2", "train.batch=2", "train.accumulate=1", "train.precision=fp32", "method.warmup=1",
        "method.watch.samples=24", "method.rewards=[{name: brightness}]", "train.sample_every=2",
    )  # fmt: skip
    words = ["align", "dipp", "--generator", place, "--prompts", str(tmp_path / "prompts.txt")]
    words += [word for each in sets for word in ("--set", each)]
    plan = CliRunner().invoke(app, [*words[:6], "--reward", "brightness", "--dry-run"])
    assert plan.exit_code == 0, plan.output
    assert "precision: bf16" in plan.stdout
    assert "checkpointing: true" in plan.stdout
    assert "# phase generator: activations kept by generator" in plan.stdout, "the warm-up of 500 steps has none"
    assert "# each step: fake (fake) -> generator (generator)" in plan.stdout
    assert "name: dipp" in plan.stdout
    assert "alpha_cfg: 1.5" in plan.stdout
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.output
    said = "1 prompts are longer than the 77 tokens that text_encoder reads"
    assert f"warning: step 0: {said}" in result.stderr
    assert said in (tmp_path / "run" / "log.txt").read_text()
    metrics = json.loads(result.stdout)["metrics"]
    assert {"reward_before", "reward_after", "reward_held_out_after", "spread_ratio", "alpha_rew"} <= set(metrics)
    assert (tmp_path / "run" / "samples" / "before-after.png").is_file()
    assert latent.load(str(tmp_path / "run"), where=CPU).sigma_init == 2.5


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_guided_and_the_assistant_is_not(places: Any, name: str) -> None:
    """R7: at omega the reference answers D(c) + omega (D(c) - D(null)), with the pipeline's own null prompt."""
    place, omega = places(name), CASES[name][0]["alpha_cfg"]
    method = made(place)
    x0, cond = method.core.generate(2, rng.generator(0))
    law = method.config.noise_generator
    seen = method.core.compare(x0.detach(), cond, rng.generator(3), law=law, teacher=1 + omega, through=False)
    teacher = method.core.teacher
    null = latent.load(place, where=CPU).prompter.null(CPU).expand(2)
    with torch.no_grad():
        with_words, without = teacher(seen.x_t, seen.t, cond), teacher(seen.x_t, seen.t, null)
    torch.testing.assert_close(seen.d_teacher, with_words + omega * (with_words - without), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.d_fake, with_words, rtol=1e-4, atol=1e-4)  # it starts as the reference
    assert float((with_words - without).abs().max()) > 1e-3, "the prompt shows"


def states(state: Any) -> list[Tensor]:
    return [v for net in (*state.nets.values(), *state.averaged.values()) for v in net.state_dict().values()]


@pytest.mark.parametrize(
    ("name", "lora"),
    [("sd15", None), ("sd15", {"rank": 2}), ("pixart", None), ("sd3", {"rank": 2})],
    ids=["sd15", "sd15-lora", "pixart", "sd3-lora"],
)
def test_twenty_steps_resume_export_and_come_back(
    places: Any, tmp_path: Path, name: str, lora: dict[str, Any] | None
) -> None:
    place, shape = places(name), CASES[name][2]
    whole = made(place, lora=lora)
    before = [p.clone() for p in whole.nets["generator"].parameters()]
    reference = {k: v.clone() for k, v in whole.core.teacher.state_dict().items()}
    state = fit(tmp_path / "whole", whole, steps=20, checkpoint_every=10)  # type: ignore[arg-type]
    assert any(not torch.equal(a, b) for a, b in zip(before, whole.nets["generator"].parameters(), strict=True))
    assert all(torch.equal(v, whole.core.teacher.state_dict()[k]) for k, v in reference.items())
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")  # as a kill leaves it that came before the last was whole
    (tmp_path / "cut" / "checkpoints" / "00000020" / "meta.json").unlink()
    assert (tmp_path / "cut" / "checkpoints" / "00000010" / "meta.json").is_file()
    again = fit(tmp_path / "cut", made(place, lora=lora), steps=20, checkpoint_every=10)  # type: ignore[arg-type]
    assert again.step == 20
    assert all(map(torch.equal, states(state), states(again)))
    student = state.averaged["generator"]
    export = whole.watcher._export(student)
    path = tmp_path / "generator.safetensors"
    weights.save(path, export.net, export.header)
    loaded = latent.load(str(path), where=CPU)
    assert loaded.sigma_init == 2.5
    assert loaded.header["aligned"]["alpha_cfg"] == CASES[name][0]["alpha_cfg"]
    z, cond = rng.noise(0, 0, 2, shape), whole.given.watched.take(torch.tensor([0, 1]), CPU)
    t, scale = whole.core.t_init, float(whole.core.process.sigma(whole.core.t_init))
    with torch.no_grad():
        wanted, got, start = (net(scale * z, t, cond) for net in (student, loaded.denoiser, whole.core.teacher))
    largest = float(wanted.abs().max())
    assert float((got - wanted).abs().max()) < 1e-5 * largest, "float32 rounding, of merged weights with adapters"
    assert float((start - wanted).abs().max()) > 1e-4 * largest, "it has moved"
    next_one = made(str(path), method={"sigma_init": None, "name": "di-star"})  # and can be aligned again
    assert next_one.reference.name == place


@pytest.mark.parametrize("name", CASES)
def test_adapters_begin_as_whole_copies(places: Any, name: str) -> None:
    """At zero adapters losses and figures are those of full copies, bit for bit."""
    found = []
    for lora in (None, {"rank": 2}):
        method = made(places(name), method={"alpha_rew": 1.0}, lora=lora)
        loss, figures = method._generator_loss(Batch(4), rng.generator(5))
        fake, _ = method._fake_loss(Batch(4), rng.generator(6))
        found.append({"loss": loss, "fake": fake} | figures)
    full, shared = found
    assert full.keys() == shared.keys()
    for key, value in full.items():
        torch.testing.assert_close(value, shared[key], rtol=0, atol=0, equal_nan=True, msg=key)


def test_the_plan_counts_the_generator_after_a_warm_up(place: str, tmp_path: Path) -> None:
    """Within 15 % of what torch's allocator records of a run; the warm-up's phase alone would be far off."""
    own: dict[str, Any] = {"train": {"steps": 4, "batch": 16}}
    method = {"alpha_rew": 1.0, "rewards": ({"name": "brightness"},)}
    made(place, method, **own)  # prompts are embedded once, before the record
    peak = recorded(lambda: fit(tmp_path, made(place, method, **own)))  # type: ignore[arg-type]
    planned = made(place, method, where=memory.META, **own)
    plan = memory.plan(planned, planned.recipe.train, rules="cpu")
    assert [work.name for work in plan.phases] == ["fake", "generator"]
    assert plan.peak() == pytest.approx(peak, rel=0.15)
    assert plan.resident + plan.phases[0].peak < 0.8 * peak


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"prompts": None}, "is asked for something by prompts"),
        ({"held_out_prompts": {"text": ("a red cube",)}}, "training asks for 1 of them, as `a red cube`"),
        ({"measure": {"features": "identity"}}, "no data to compare a text-to-image model with"),
        ({"method": {"sigma_init": None}}, "is no one-step generator yet"),
        ({"method": {"held_out": (1,)}}, "held_out: is of classes"),
        ({"prompts": {"text": PROMPTS, "negative": "blurred"}}, "guides away from the null prompt"),
        ({"prompts": {"text": PROMPTS, "per_prompt": 2}}, "per_prompt: training draws prompts at random"),
        (
            {"method": {"rewards": ({"name": "clip", "prompts": ("a cat",)},)}},
            "1 for a model that is asked by prompts",
        ),
        ({"method": {"watch": {"samples": 7}}}, "7 are too few for 4 classes or prompts"),
    ],
)
def test_what_does_not_fit_is_refused(place: str, own: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        made(place, **own)


def test_prompts_are_for_text_to_image_models() -> None:
    with pytest.raises(RecipeError, match="`sim-digits` is no text-to-image model"):
        made("sim-digits", method={"sigma_init": None})
    with pytest.raises(RecipeError, match="latent: `sim-digits` makes images"):
        build(recipe({"name": "dipp"}, generator="sim-digits", latent={"size": 512}))


def test_r8_a_decoder_that_overflows_is_named(place: str) -> None:
    method = made(place, latent={"decode": "float16"})
    cond = method.given.watched.take(torch.tensor([0, 1]), CPU)
    with pytest.raises(RunFailed, match="float16"):
        method.pulls(torch.full((2, 4, 8, 8), 1e5), cond, rng.generator(0))
    made(place).pulls(torch.full((2, 4, 8, 8), 1e5), cond, rng.generator(0))  # the control: in float32 it decodes


# --- R9, R11: published rewards ---------------------------------------------------------------------------------------


@pytest.fixture
def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny ImageReward of random weights, and a vocabulary that is not BERT's."""
    pytest.importorskip("transformers")
    monkeypatch.setattr(image_reward, "VOCABULARY", replace(image_reward.VOCABULARY, size=None, sha256=""))
    folder = tmp_path
    torch.save(published(), folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return folder / "ImageReward.pt"


def textured(n: int) -> Tensor:
    """Smooth images with a stripe in every other column, which antialiasing averages away, in [-1, 1]."""
    coarse = rng.noise(0, 0, n, (3, 6, 6), purpose="smooth")
    stripes = 1 - 2.0 * (torch.arange(96) % 2)
    return F.interpolate(coarse, (96, 96), mode="bicubic").tanh() * 0.6 + 0.3 * stripes


def test_r9_the_differentiable_way_is_the_official_one(reward: Path) -> None:
    """8 images: float with gradient against bytes through Pillow, |difference| < 0.02; three mistakes are far off."""
    net = image_reward.build(reward, where=CPU)
    images, texts = textured(8), ["A cat, a"] * 8
    official = net(torch.from_numpy(np.asarray(((images + 1) * 127.5).round().byte())), texts)
    assert float(official.std()) > 0.1, "the network tells these images apart"
    term = _rewards._preference(
        _section(reward), _rewards.Subject("text", (3, 96, 96), 0, texts=True), CPU, "method.rewards[0]"
    )
    cond = Said(torch.zeros(8, 1, 1), texts=tuple(texts))
    ours = term.value(images, cond)
    assert float((ours - official).abs().max()) < 0.02
    crude = F.interpolate((images + 1) / 2, (32, 32), mode="bilinear")
    assert float((net(crude, texts) - official).abs().max()) > 0.1, "without antialiasing"
    shifted = net(images.clamp(0, 1), texts)
    assert float((shifted - official).abs().max()) > 0.1, "[-1, 1] taken for [0, 1]"


def _section(reward: Path) -> Any:
    settings = {"name": "dipp", "rewards": ({"name": "image-reward", "weights": str(reward)},), "alpha_rew": 1.0}
    return recipe(settings).method.rewards[0]


def test_r11_prompts_that_a_reward_cuts_are_counted(place: str, reward: Path) -> None:
    long = ("a b c d e f g h i j " * 4).strip()  # 40 words, 35 tokens with their marks are read
    rewards = ({"name": "image-reward", "weights": str(reward)},)
    method = made(place, method={"rewards": rewards}, prompts={"text": ("a cat", long)})
    (note,) = method.watcher.notes
    assert note == "1 prompts are longer than `image-reward` reads: their ends are not rewarded"
    assert made(place, method={"rewards": rewards}, prompts={"text": ("a cat", "a dab")}).watcher.notes == []
