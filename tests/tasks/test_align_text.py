"""Alignment of text-to-image models: prompts to networks and rewards, latents decoded on the way, resume and export.

The pipelines are random and tiny, and are made here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from gentk.cli.app import app
from gentk.engine import rng
from gentk.engine.method import Batch
from gentk.errors import RecipeError, RunFailed
from gentk.nets import weights
from gentk.processes import latent
from gentk.rewards import image_reward
from gentk.tasks.align import _rewards
from gentk.tasks.align._aligning import Aligning
from gentk.tasks.align._subjects import Said, Sayings
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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTK_CACHE", str(root / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield str(tiny_pipelines.sd15(root / "sd15"))


def made(place: str, method: dict[str, Any] | None = None, **own: Any) -> Aligning:
    """DI++ on the tiny Stable Diffusion, which starts as its own teacher, guided by 1.5."""
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
    usual = {
        "generator": place,
        "teacher": None,
        "prompts": {"text": PROMPTS},
        "held_out_prompts": {"text": HELD},
        "train": {"steps": 20, "batch": 4},
        "optim": {n: {"name": "adam", "lr": 1e-3, "betas": (0.0, 0.999)} for n in ("generator", "fake")},
    }
    return build(recipe(settings | (method or {}), **usual | own))


def test_prompts_reach_networks_and_rewards(place: str) -> None:
    asked.clear()
    method = made(place)
    assert method.rewards.terms[0].name.endswith(":wordy")
    x0, cond = method.core.generate(4, rng.generator(0))
    assert x0.shape == (4, 4, 8, 8)
    assert isinstance(cond, Said)
    assert len(cond) == len(cond.texts) == 4
    assert set(cond.texts) <= set(PROMPTS)
    both = latent.load(place, where=CPU)
    want = both.prompter.encode(list(cond.texts), CPU)
    torch.testing.assert_close(cond.embeds, want.embeds)
    asked.clear()
    rewarded, _, figures = method.pulls(x0, cond, rng.generator(1))
    assert asked == [(cond.texts, (4, 3, 16, 16))], "the decoded image, not the latent"
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
    """The recipe of Stable Diffusion is found for a folder of its kind; two steps of it, and its plan."""
    (tmp_path / "prompts.txt").write_text("\n".join(f"{k} cats" for k in range(12)))
    sets = (
        "train.steps=2", "train.batch=2", "train.accumulate=1", "train.precision=fp32", "method.warmup=1",
        "method.watch.samples=24", "method.rewards=[{name: brightness}]", "train.sample_every=2",
    )  # fmt: skip
    words = ["align", "dipp", "--generator", place, "--prompts", str(tmp_path / "prompts.txt")]
    words += [word for each in sets for word in ("--set", each)]
    plan = CliRunner().invoke(app, [*words, "--dry-run"])
    assert plan.exit_code == 0, plan.output
    assert "name: dipp" in plan.stdout
    assert "alpha_cfg: 1.5" in plan.stdout
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run"), "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)["metrics"]
    assert {"reward_before", "reward_after", "reward_held_out_after", "spread_ratio", "alpha_rew"} <= set(metrics)
    assert (tmp_path / "run" / "samples" / "before-after.png").is_file()
    assert latent.load(str(tmp_path / "run"), where=CPU).sigma_init == 2.5


def test_the_reference_is_guided_and_the_assistant_is_not(place: str) -> None:
    """R7: at omega the reference answers D(c) + omega (D(c) - D(null)), with the pipeline's own null prompt."""
    method = made(place)
    x0, cond = method.core.generate(2, rng.generator(0))
    law = method.config.noise_generator
    seen = method.core.compare(x0.detach(), cond, rng.generator(3), law=law, teacher=2.5, through=False)
    teacher = method.core.teacher
    null = latent.load(place, where=CPU).prompter.null(CPU).expand(2)
    with torch.no_grad():
        with_words, without = teacher(seen.x_t, seen.t, cond), teacher(seen.x_t, seen.t, null)
    torch.testing.assert_close(seen.d_teacher, with_words + 1.5 * (with_words - without), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.d_fake, with_words, rtol=1e-4, atol=1e-4)  # it starts as the reference


def states(state: Any) -> list[Tensor]:
    return [v for net in (*state.nets.values(), *state.averaged.values()) for v in net.state_dict().values()]


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_twenty_steps_resume_export_and_come_back(place: str, tmp_path: Path, lora: dict[str, Any] | None) -> None:
    whole = made(place, lora=lora)
    before = [p.clone() for p in whole.nets["generator"].parameters()]
    state = fit(tmp_path / "whole", whole, steps=20, checkpoint_every=10)  # type: ignore[arg-type]
    assert any(not torch.equal(a, b) for a, b in zip(before, whole.nets["generator"].parameters(), strict=True))
    fit(tmp_path / "cut", made(place, lora=lora), steps=20, checkpoint_every=10)  # type: ignore[arg-type]
    (tmp_path / "cut" / "checkpoints" / "00000020" / "meta.json").unlink()
    again = fit(tmp_path / "cut", made(place, lora=lora), steps=20, checkpoint_every=10)  # type: ignore[arg-type]
    assert all(map(torch.equal, states(state), states(again)))
    student = state.averaged["generator"]
    export = whole.watcher._export(student)
    path = tmp_path / "generator.safetensors"
    weights.save(path, export.net, export.header)
    loaded = latent.load(str(path), where=CPU)
    assert loaded.sigma_init == 2.5
    assert loaded.header["aligned"]["alpha_cfg"] == 1.5
    z, cond = rng.noise(0, 0, 2, (4, 8, 8)), whole.given.watched.take(torch.tensor([0, 1]), CPU)
    t, scale = whole.core.t_init, float(whole.core.process.sigma(whole.core.t_init))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.denoiser(scale * z, t, cond), student(scale * z, t, cond), rtol=1e-4, atol=1e-5
        )
    next_one = made(str(path), method={"sigma_init": None, "name": "di-star"})  # and can be aligned again
    assert next_one.reference.name == place


def test_adapters_begin_as_whole_copies(place: str) -> None:
    """At zero adapters losses and figures are those of full copies."""
    figures = []
    for lora in (None, {"rank": 2}):
        method = made(place, method={"alpha_rew": 1.0}, lora=lora)
        loss, found = method._generator_loss(Batch(4), rng.generator(5))
        figures.append(
            [float(loss.detach()), *(float(v.detach()) for k, v in sorted(found.items()) if "ratio" not in k)]
        )
    assert figures[0] == pytest.approx(figures[1], rel=1e-4, abs=1e-6, nan_ok=True)


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
