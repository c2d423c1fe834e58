"""What is said where weights or packages are absent: which, from where, where to; in under 2 s."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gentk.errors import MissingAsset
from gentk.metrics import mask2former, paired
from gentk.recipe import extras, hub
from gentk.rewards import aesthetic, clip, colours, hps, image_reward, pick
from tests.rewards.conftest import CPU

REMEDIES = {"aesthetic": "--set method.head=PATH", "colours": "--set method.clip=PATH"}  # --weights is another file
BUILDS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "aesthetic": (aesthetic.build, "sac+logos+ava1-l14-linearMSE.pth", "21dd590f"),
    "clip": (clip.build, "ViT-B-32.pt", "40d36571"),
    "hps": (hps.build, "HPS_v2.1_compressed.pt", "no sha256 published"),
    "image-reward": (image_reward.build, "ImageReward.pt", "no sha256 published"),
    "pick": (pick.build, "yuvalkirstain/PickScore_v1", "hash"),
    "colours": (colours.build, "ViT-L-14.pt", "b8cca3fd"),
    "detector": (mask2former.build, "facebook/mask2former-swin-small-coco-instance", "hash"),
    "lpips": (paired.lpips, "alexnet-owt-7be5be79.pth", "7be5be79"),
}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENTK_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("name", BUILDS)
def test_weights(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if name in ("pick", "detector"):  # those that lie in folders of the hub
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        assert pytest.importorskip("huggingface_hub").snapshot_download  # imported once, not within the time below
    build, file, digest = BUILDS[name]
    start = time.monotonic()
    with pytest.raises(MissingAsset) as caught:
        build(where=CPU, offline=True)
    assert time.monotonic() - start < 2
    said = f"{caught.value} {caught.value.hint}"
    for word in (file, digest, "https://", REMEDIES.get(name, "--weights")):
        assert word in said
    assert "size" in said or "bytes" in said


@pytest.mark.parametrize("name", ["aesthetic", "hps", "image-reward", "lpips"])
def test_files_that_are_named_but_absent(name: str, tmp_path: Path) -> None:
    build = BUILDS[name][0]
    argument = {"aesthetic": "head", "lpips": "trunk"}.get(name, "weights")
    for suffix in (".pt", ".safetensors"):
        with pytest.raises(MissingAsset, match=f"nowhere{suffix}"):
            build(where=CPU, offline=True, **{argument: tmp_path / f"nowhere{suffix}"})


def test_packages(monkeypatch: pytest.MonkeyPatch, clip_folder: Callable[..., Path]) -> None:
    place = clip_folder()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingAsset, match="transformers") as caught:
        pick.build(place, where=CPU, offline=True)
    assert "pip install 'gentk[t2i]'" in caught.value.hint
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingAsset, match="huggingface_hub") as caught:
        hub.folder("owner/name", offline=True)
    assert "gentk[t2i]" in caught.value.hint


def test_open_clip(monkeypatch: pytest.MonkeyPatch, clip_file: Callable[..., Path]) -> None:
    path = clip_file("tiny")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingAsset, match="open_clip") as caught:
        hps.build(path, where=CPU, offline=True)
    assert "pip install 'gentk[eval]'" in caught.value.hint


def test_a_torchvision_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        def find_spec(self, name: str, *_: Any) -> Any:
            if name != "mismatched":
                return None
            from importlib.machinery import ModuleSpec

            return ModuleSpec(name, self)

        def create_module(self, spec: Any) -> None:
            return None

        def exec_module(self, module: ModuleType) -> None:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(MissingAsset, match="nms does not exist") as caught:
        extras.load("mismatched", "eval")
    assert "belongs to the installed torch" in caught.value.hint
