from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gentk.rewards import hps, pixels
from tests.rewards.conftest import CPU, noise, pictures

PROMPTS = ["a cat", "two dogs"]


def build(path: Path, **settings: Any) -> hps.Hps:
    return hps.build(path, where=CPU, offline=True, architecture="tiny", **settings)


def test_a_hundred_cosines_of_letterboxed_pictures(clip_file: Callable[..., Path]) -> None:
    score = build(clip_file("tiny"))
    x = pictures(2, 64, 128)
    image = score.clip._image(pixels.normalise(pixels.letterbox(x, 32)))
    text = score.clip._text(PROMPTS)
    torch.testing.assert_close(score(x, PROMPTS), 100 * torch.cosine_similarity(image, text))
    # The control: CLIP's own preparation, or bars of the mean colour, are other pictures.
    bars = pixels.letterbox(pixels.normalise(x / 255), 32)
    for other in (pixels.normalise(pixels.crop(x, 32)), bars):
        wrong = 100 * torch.cosine_similarity(score.clip._image(other), text)
        assert (wrong - score(x, PROMPTS)).abs().max() > 0.1


def test_versions_and_antialiasing_are_on_record(clip_file: Callable[..., Path]) -> None:
    path = clip_file("tiny")
    new, old = build(path), build(path, version="2.0", antialias=False)
    assert (new.record["version"], new.record["antialias"]) == ("2.1", True)
    assert (old.record["version"], old.record["antialias"]) == ("2.0", False)
    x = pictures(2, 64, 64)
    assert not torch.allclose(new(x, PROMPTS), old(x, PROMPTS), atol=1e-3)
    assert new(x, PROMPTS).dtype == torch.float32  # of weights in half precision


def test_gradient(clip_file: Callable[..., Path]) -> None:
    x = noise(2, 3, 40, 64).requires_grad_()
    (grad,) = torch.autograd.grad(build(clip_file("tiny"))(x, PROMPTS).sum(), x)
    assert (grad != 0).all()


def test_the_architecture_has_the_published_size() -> None:
    open_clip = pytest.importorskip("open_clip")
    with torch.device("meta"):
        state = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14")).state_dict()
    assert len(state) == 686
    assert sum(v.numel() for v in state.values()) == 986_109_441
