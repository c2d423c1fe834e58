from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from gentk import data
from gentk.errors import MissingAsset, RunFailed
from gentk.recipe.schema import Data

SHARED = os.environ.get("GENTK_DATA")
on_real_data = pytest.mark.skipif(not SHARED, reason="GENTK_DATA is not set: no MNIST and Fashion-MNIST here")
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)
LABELS = np.array([0, 9, 3, 3, 1, 2, 8], np.uint8)


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write(folder: Path, gz: bool = False, labels: np.ndarray = LABELS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix in ("train", "t10k"):
        for name, raw in (("images-idx3", idx(IMAGES)), ("labels-idx1", idx(labels))):
            path = folder / f"{prefix}-{name}-ubyte"
            if gz:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(raw))
            else:
                path.write_bytes(raw)
    return folder


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("mnist", ""),
        ("fashion-mnist", "fashion_mnist"),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("fashion-mnist", ""),
    ],
)
def test_found_in_every_layout(tmp_path: Path, name: str, place: str, gz: bool) -> None:
    write(tmp_path / place, gz)
    for split in ("train", "test"):
        got = data.load(Data(name=name, root=str(tmp_path)), split)
        assert np.array_equal(got.x[:, 0].numpy(), IMAGES)
        assert got.y is not None
        assert got.y.tolist() == LABELS.tolist()
        assert got.y.dtype == torch.int64
        assert got.shape == (1, 28, 28)
        assert got.classes == 10
        assert got.kind == "image"


def test_the_environment_names_a_root_for_all_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENTK_DATA", str(tmp_path))
    write(tmp_path)  # whose files these are cannot be told: both sets use the same names
    with pytest.raises(MissingAsset):
        data.load(Data(name="fashion-mnist"), "train")
    write(tmp_path / "FashionMNIST/raw")
    assert len(data.load(Data(name="fashion-mnist"), "train")) == 7
    other = write(tmp_path / "other", labels=LABELS[::-1])
    got = data.load(Data(name="fashion-mnist", root=str(other)), "train")
    assert got.y is not None
    assert got.y[0] == LABELS[-1], "data.root goes before GENTK_DATA"


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (b"", idx(LABELS), "images-idx3-ubyte: not an IDX file"),
        (b"\0\0\x0d\3" + idx(IMAGES)[4:], idx(LABELS), "not an IDX file of bytes with 3 dimension"),
        (idx(LABELS), idx(LABELS), "images-idx3-ubyte: not an IDX file of bytes with 3"),
        (idx(IMAGES)[:-1], idx(LABELS), "5487 bytes of values where the header promises 5488"),
        (idx(IMAGES) + b"x", idx(LABELS), "5489 bytes of values where the header promises 5488"),
        (idx(IMAGES)[:10], idx(LABELS), "not an IDX file"),
        (idx(IMAGES[:, :8, :8].copy()), idx(LABELS), "images of 8 x 8 pixels, expected 28 x 28"),
        (idx(IMAGES), idx(LABELS[:6]), "labels-idx1-ubyte: 6 labels for 7 images"),
        (idx(IMAGES), idx(LABELS + 5), "labels-idx1-ubyte: label 1 is 14, outside 0..9"),
        (idx(IMAGES[:0]), idx(LABELS[:0]), "no samples"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, images: bytes, labels: bytes, words: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(RunFailed, match=words):
        data.load(Data(name="mnist", root=str(tmp_path)), "train")


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"x" + raw[1:], lambda raw: raw[:-8]])
def test_a_damaged_gzip_is_named(tmp_path: Path, damage) -> None:
    write(tmp_path, gz=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunFailed, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        data.load(Data(name="mnist", root=str(tmp_path)), "train")


@on_real_data
@pytest.mark.parametrize(
    # Published: channel mean of the training images / 255 (torchvision's constants) and, for MNIST, digit counts.
    ("name", "mean", "std", "test_counts"),
    [
        ("mnist", 0.1307, 0.3081, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),
        ("fashion-mnist", 0.2860, 0.3530, [1000] * 10),
    ],
)
def test_the_real_files(name: str, mean: float, std: float, test_counts: list[int]) -> None:
    train, test = (data.load(Data(name=name, root=SHARED), split) for split in ("train", "test"))
    assert len(train) == 60_000
    assert len(test) == 10_000
    assert test.y is not None
    assert test.y.bincount().tolist() == test_counts
    values = train.x.double() / 255
    assert abs(values.mean().item() - mean) < 1e-4
    assert abs(values.std().item() - std) < 1e-4
