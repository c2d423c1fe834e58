"""CLIPScore's definitions, and torchmetrics' own where it can be made to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gentk.errors import RecipeError, RunFailed
from gentk.rewards import clip, pixels
from tests.rewards.conftest import CPU, noise, pictures

PROMPTS = ["a cat", "two dogs"]


def build(place: Path, definition: str) -> clip.ClipScore:
    return clip.build(place, where=CPU, offline=True, definition=definition)


def cosine(score: clip.ClipScore, x: torch.Tensor, prefix: str) -> torch.Tensor:
    towers = score.clip
    image = towers._image(pixels.normalise(x))
    text = towers._text([prefix + p for p in PROMPTS])
    return torch.cosine_similarity(image, text)


def test_definitions(clip_folder: Callable[..., Path]) -> None:
    quick, plain = clip_folder("quick_gelu"), clip_folder("gelu")
    x = pictures(2, 300, 280)
    first, second, third = (
        build(plain if name == "dmd2" else quick, name) for name in ("clipscore", "torchmetrics", "dmd2")
    )
    expected = 2.5 * cosine(first, pixels.crop(x, 32), "A photo depicts ").clamp(min=0)
    torch.testing.assert_close(first(x, PROMPTS), expected)
    expected = 100 * cosine(second, pixels.crop(x, 32), "").clamp(min=0)
    torch.testing.assert_close(second(x, PROMPTS), expected)
    small = pixels.square_lanczos(x, 256)
    expected = cosine(third, pixels.crop(small, 32), "A photo depicts ")
    torch.testing.assert_close(third(x, PROMPTS), expected)
    # The prefix and the detour over 256 pixels are part of what is measured.
    assert not torch.allclose(cosine(third, pixels.crop(small, 32), ""), expected, atol=1e-4)
    assert not torch.equal(cosine(third, pixels.crop(x, 32), "A photo depicts "), expected)
    assert third.record["definition"] == "dmd2"
    assert third.record["prefix"] == "A photo depicts "
    assert third.record["encoder"] == str(plain)


def test_negative_cosines_are_clipped_where_the_definition_says_so() -> None:
    opposite = SimpleNamespace(side=32, record={}, image=lambda x: torch.eye(2), text=lambda p: -torch.eye(2))
    values = {
        name: clip.ClipScore.forward(SimpleNamespace(clip=opposite, definition=d), pictures(2, 300, 300), PROMPTS)
        for name, d in clip.DEFINITIONS.items()
    }
    assert {name: v.tolist() for name, v in values.items()} == {
        "clipscore": [0, 0],
        "torchmetrics": [0, 0],
        "dmd2": [-1, -1],
    }


def test_gradient_where_the_definition_has_one(clip_folder: Callable[..., Path]) -> None:
    x = noise(2, 3, 40, 40).requires_grad_()
    score = build(clip_folder("gelu"), "dmd2")
    with pytest.raises(RunFailed, match="no gradient"):
        score(x, PROMPTS)
    score = build(clip_folder("quick_gelu"), "clipscore")
    score.definition = clip.DEFINITIONS["clipscore"].__class__(**{**vars(score.definition), "clipped": False})
    (grad,) = torch.autograd.grad(score(x, PROMPTS).sum(), x)
    assert grad.abs().amax((1, 2, 3)).min() > 0


def test_unknown_definitions_are_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean `clipscore`"):
        clip.build(where=CPU, definition="clip-score")


def test_torchmetrics_gives_what_its_definition_gives(clip_folder: Callable[..., Path]) -> None:
    functional = pytest.importorskip("torchmetrics.functional.multimodal")
    transformers = pytest.importorskip("transformers")
    score = build(clip_folder(seed=5), "torchmetrics")
    x = pictures(2, 48, 40)

    class Wrapped:
        """transformers 5 gives objects where torchmetrics 1.9 wants tensors, and refuses folders by name."""

        device = CPU
        config = score.clip.net.config

        def to(self, *_: Any) -> Wrapped:
            return self

        def get_image_features(self, x: torch.Tensor) -> torch.Tensor:
            return score.clip._image(x)

        def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            out = score.clip.net.get_text_features(input_ids=ids, attention_mask=mask)
            return getattr(out, "pooler_output", out)

    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = transformers.CLIPProcessor(transformers.CLIPImageProcessor(**size), score.clip.words)
    value = functional.clip_score(x, PROMPTS, lambda: (Wrapped(), processor))
    # Its pictures are resized as uint8 tensors rather than by Pillow: a grey level at most.
    assert value.item() == pytest.approx(score(x, PROMPTS).mean().item(), rel=0.01)
    assert value.item() > 1, "another seed is needed: negative cosines count as 0"
