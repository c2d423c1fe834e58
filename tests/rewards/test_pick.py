from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gentk.errors import MissingAsset
from gentk.recipe import hub
from gentk.rewards import pick, pixels
from tests.rewards.conftest import CPU, noise, pictures

PROMPTS = ["a cat", "two dogs"]


def test_scaled_cosine(clip_folder: Callable[..., Path]) -> None:
    score = pick.build(clip_folder("gelu"), where=CPU, offline=True)
    x = pictures()
    image = score.clip._image(pixels.normalise(pixels.crop(x, 32)))
    text = score.clip._text(PROMPTS)
    scale = score.clip.net.logit_scale.exp()
    assert scale > 10
    torch.testing.assert_close(score(x, PROMPTS), scale * torch.cosine_similarity(image, text))
    # The control: since transformers 5 the embeddings that come back are projected, but not of length 1.
    assert not torch.allclose(scale * (image * text).sum(-1), score(x, PROMPTS), rtol=0.1)
    grey = noise(2, 3, 32, 32).requires_grad_()
    (grad,) = torch.autograd.grad(score(grey, PROMPTS).sum(), grey)
    assert (grad != 0).all()


def test_the_tokenizer_may_lie_in_another_folder(
    clip_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = clip_folder("gelu")
    expected = pick.build(place, where=CPU, offline=True)(pictures(), PROMPTS)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.move(place / name, other / name)
    with pytest.raises(MissingAsset, match=pick.TOKENIZER):
        pick.build(place, where=CPU, offline=True)
    monkeypatch.setattr(pick, "TOKENIZER", str(other))
    torch.testing.assert_close(pick.build(place, where=CPU, offline=True)(pictures(), PROMPTS), expected)


def test_hub_ids_and_paths_are_told_apart(tmp_path: Path) -> None:
    assert hub.is_id("owner/name")
    for path in ("name", "./owner/name", "/owner/name", "~/name", "a/b/c", tmp_path):
        assert not hub.is_id(path)
    with pytest.raises(MissingAsset, match="no such folder"):
        hub.folder(tmp_path / "absent", offline=True)
    with pytest.raises(MissingAsset, match=r"no config\.json"):
        hub.folder(tmp_path, offline=True)
