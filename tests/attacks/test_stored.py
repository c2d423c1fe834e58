"""Adversarial images on disk: back as they were, and refused where they are not what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from gentk.attacks import stored
from gentk.attacks.ball import Ball
from gentk.attacks.stored import Stored
from gentk.errors import RunFailed

GEN = torch.Generator().manual_seed(0)
CLEAN = torch.rand(6, 1, 4, 4, generator=GEN)
BALL = Ball("linf", 8 / 255)


def made(**own: Tensor) -> Stored:
    moved = BALL.project(CLEAN + torch.randn(CLEAN.shape, generator=GEN), CLEAN)
    parts = {"x": moved, "clean": CLEAN, "ids": torch.arange(10, 16), "y": torch.arange(6)} | own
    return Stored(**parts, ball=BALL, facts={"attack": "pgd", "seed": 0})


def rewritten(path: Path, **own: Tensor) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - the file is no dict
    path.write_bytes(safetensors.torch.save(tensors | own, header))


def test_round_trip_is_bit_for_bit(tmp_path: Path) -> None:
    before = made()
    stored.save(tmp_path / "a" / "x.safetensors", before)
    after = stored.load(tmp_path / "a" / "x.safetensors")
    for name in ("x", "clean", "ids", "y"):
        assert torch.equal(getattr(after, name), getattr(before, name))
    assert after.ball == BALL  # 8/255 survives the text of a header
    assert after.facts == before.facts
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "x.safetensors"]


def test_images_outside_of_the_ball_are_never_written(tmp_path: Path) -> None:
    far = CLEAN.clone()
    far[2, 0, 0, 0] = 1 - far[2, 0, 0, 0].round()
    with pytest.raises(RunFailed, match="image 12 is outside"):
        stored.save(tmp_path / "x.safetensors", made(x=far))
    assert list(tmp_path.iterdir()) == []


def test_the_ball_is_checked_after_loading(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stored.save(path, made())
    rewritten(path, x=(made().x * 255).to(torch.uint8).float() / 255)  # what torchattacks' save_type="int" does
    with pytest.raises(RunFailed, match="outside of the threat"):
        stored.load(path)


def test_the_clean_images_may_come_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stored.save(path, made())
    assert torch.equal(stored.load(path, CLEAN).clean, CLEAN)
    with pytest.raises(RunFailed, match="outside of the threat"):
        stored.load(path, CLEAN.flip(0))


def test_an_image_counts_once(tmp_path: Path) -> None:
    """Trap 16: a sampler that fills its last batch with copies counts them."""
    path = tmp_path / "x.safetensors"
    stored.save(path, made())
    rewritten(path, ids=torch.tensor([10, 11, 12, 13, 14, 14]))
    with pytest.raises(RunFailed, match="twice"):
        stored.load(path)


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(RunFailed, match="cannot be read"):
        stored.load(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(RunFailed, match="cannot be read"):
        stored.load(path)
    path.write_bytes(safetensors.torch.save({"x": CLEAN}))
    with pytest.raises(RunFailed, match="no adversarial images"):
        stored.load(path)
