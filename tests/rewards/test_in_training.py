"""Every named reward as `gentk align` uses it: on tiny networks of its own format, and where they are absent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gentk.engine import rng
from gentk.errors import MissingAsset
from gentk.rewards import aesthetic, hps, image_reward
from gentk.tasks.align._aligning import Aligning
from gentk.tasks.align._rewards import checksum, network
from gentk.tasks.align._subjects import Said
from tests.nets import tiny_pipelines
from tests.rewards.conftest import CPU, random_net
from tests.rewards.test_absent import BUILDS
from tests.rewards.test_image_reward import WORDS, published
from tests.tasks.align_toys import build, recipe
from tests.tasks.toys import fit

NAMED = ("image-reward", "hps", "pick", "clip", "aesthetic")
SEED = 2
PROMPTS = ("a cat", "a dab")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Stable Diffusion."""
    return str(tiny_pipelines.sd15(tmp_path_factory.mktemp("rewarded") / "sd15"))


@pytest.fixture
def weights(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clip_folder: Callable[..., Path],
    request: pytest.FixtureRequest,
) -> Callable[[str], str]:
    """Name of a reward -> its `weights`, random and of its format, as a user would give them."""
    monkeypatch.setenv("GENTK_CACHE", str(tmp_path / "cache"))

    def _write(name: str) -> str:
        if name == "image-reward":
            monkeypatch.setattr(image_reward, "VOCABULARY", replace(image_reward.VOCABULARY, size=None, sha256=""))
            torch.save(published(), tmp_path / "ImageReward.pt")
            (tmp_path / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
            return str(tmp_path / "ImageReward.pt")
        if name == "hps":  # the published network is too large for a test
            of = hps.build
            monkeypatch.setattr(hps, "build", lambda file, where: of(file, where=where, architecture="tiny"))
            return str(request.getfixturevalue("clip_file")("tiny"))  # skips where open_clip is absent
        if name == "aesthetic":  # the head has no place in a recipe: it is taken from the cache
            head = tmp_path / "cache" / "weights" / aesthetic.AESTHETIC_V2.name
            head.parent.mkdir(parents=True)
            torch.save(random_net(lambda: aesthetic.Head(16)).state_dict(), head)
            monkeypatch.setattr(aesthetic, "AESTHETIC_V2", replace(aesthetic.AESTHETIC_V2, sha256=""))
        # `clip` is no less than 0, where it has no gradient: a network whose cosines here are above
        return str(clip_folder("gelu" if name == "pick" else "quick_gelu", seed=SEED if name == "clip" else 0))

    return _write


def made(place: str, name: str, weights: str) -> Aligning:
    """Two steps of DI++ to that reward."""
    method = {
        "name": "dipp",
        "rewards": ({"name": name, "weights": weights},),
        "alpha_rew": 100.0,
        "warmup": 0,
        "sigma_init": 2.5,
        "watch": {"samples": 4},
    }
    sections = {"prompts": {"text": PROMPTS}, "train": {"steps": 2, "batch": 2}}
    return build(recipe(method, generator=place, teacher=None, **sections))


@pytest.mark.parametrize("name", NAMED)
def test_training_moves_no_parameter_of_the_reward(
    place: str, weights: Callable[[str], str], tmp_path: Path, name: str
) -> None:
    """R10, for each; and the reward moves the generator: without it the update is another."""
    method = made(place, name, weights(name))
    (net,) = method.rewards.nets
    before = checksum([net])
    x0, cond = method.core.generate(2, rng.generator(0))
    rewarded, _, _ = method.pulls(x0, cond, rng.generator(0))
    assert float(rewarded.norm()) > 0
    fit(tmp_path / "run", method, steps=2, checkpoint_every=2)  # type: ignore[arg-type]
    assert checksum([net]) == before
    assert not any(each.training for each in net.modules())
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    learned = {id(p) for each in method.nets.values() for p in each.parameters()}
    assert learned.isdisjoint(map(id, net.parameters()))


def pictures(n: int) -> Tensor:
    """Smooth images with some grain, (n, 3, 48, 40) in [-1, 1]."""
    coarse = rng.noise(0, 0, n, (3, 6, 5), purpose="smooth")
    smooth = torch.nn.functional.interpolate(coarse, (48, 40), mode="bicubic").tanh()
    return (0.8 * smooth + 0.1 * rng.noise(0, 0, n, (3, 48, 40), purpose="grain")).clamp(-1, 1)


@pytest.mark.parametrize("name", NAMED)
def test_the_differentiable_way_is_the_official_one(place: str, weights: Callable[[str], str], name: str) -> None:
    """R9, for each: float with gradient against bytes, resized as published, on 8 images; two mistakes are far off."""
    method = made(place, name, weights(name))
    (net,), (term,) = method.rewards.nets, method.rewards.terms
    images, texts = pictures(8), list(PROMPTS) * 4
    with torch.no_grad():
        official = net(((images + 1) * 127.5).round().byte(), texts)
        ours = term.value(images, Said(torch.zeros(8, 1, 1), texts=tuple(texts)))
        crude = net(torch.nn.functional.interpolate((images + 1) / 2, (32, 32), mode="nearest"), texts)
        shifted = net(images.clamp(0, 1), texts)
    scatter = float(official.std())
    bound = 0.05 * scatter
    assert scatter > 0
    assert float((ours - official).abs().max()) < bound
    assert float((crude - official).abs().max()) > 5 * bound, "without antialiasing"
    assert float((shifted - official).abs().max()) > 5 * bound, "[-1, 1] taken for [0, 1]"


@pytest.mark.parametrize("name", NAMED)
def test_absent_weights_are_named_with_what_a_recipe_can_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in (("GENTK_CACHE", tmp_path), ("GENTK_OFFLINE", "1"), ("HF_HUB_CACHE", tmp_path / "hub")):
        monkeypatch.setenv(key, str(value))
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(MissingAsset) as caught:
        network(name, None, CPU, "method.rewards[0]")
    said, hint = str(caught.value), str(caught.value.hint)
    assert said.startswith("method.rewards[0]: ")
    assert BUILDS[name][1] in said, "the file"
    assert "https://" in f"{said} {hint}"
    assert "--weights" not in hint, "an option of `gentk evaluate` alone"
    if name == "aesthetic":
        assert hint.endswith(f"put it to {tmp_path / 'weights' / BUILDS[name][1]}")
    else:
        assert f"--set 'method.rewards=[{{name: {name}, weights: " in hint
