from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gentk import data
from gentk.errors import MissingAsset, RunFailed
from gentk.recipe.schema import Data

SHARED = os.environ.get("GENTK_DATA")
on_real_data = pytest.mark.skipif(not SHARED, reason="GENTK_DATA is not set: no CIFAR-10 here")
NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
RNG = np.random.default_rng(0)
BATCHES = {name: (RNG.integers(0, 256, (6, 3072), np.uint8), RNG.integers(0, 10, 6)) for name in NAMES}


def python2(x: np.ndarray, y: np.ndarray) -> bytes:
    """The bytes that Python 2's cPickle wrote for {"data": x, "labels": list(y)}: strings, not bytes or unicode."""

    def string(raw: bytes) -> bytes:
        return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw

    shape = b"".join(b"M" + struct.pack("<H", n) for n in x.shape)
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|") + b"NNNJ" + b"\xff" * 4 + b"J"
    dtype += b"\xff" * 4 + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + string(b"b") + b"\x87R"
    array += b"(K\x01" + shape + b"\x86" + dtype + b"\x89" + string(x.tobytes()) + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([int(v)]) for v in y) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + labels + b"u."


def python3(x: np.ndarray, y: np.ndarray) -> bytes:
    return pickle.dumps({b"data": x, b"labels": y.tolist(), b"batch_label": b"any"}, protocol=4)


def write_python(root: Path, dump: Callable[[np.ndarray, np.ndarray], bytes] = python2) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, (x, y) in BATCHES.items():
        (folder / name).write_bytes(dump(x, y))
    return folder


def write_archive(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in reversed(NAMES):  # the official archive is not in the order of the batches either
            raw = python2(*BATCHES[name])
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return path


def write_binary(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, (x, y) in BATCHES.items():
        records = np.concatenate([y[:, None].astype(np.uint8), x], 1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


def write_sheets(root: Path) -> Path:
    folder = root / "cifar10"
    folder.mkdir(parents=True)
    for name, (x, _) in BATCHES.items():
        tiles = x.reshape(2, 3, 3, 32, 32)  # 2 rows of 3 images
        sheet = np.zeros((64, 96, 3), np.uint8)
        for r in range(2):
            for c in range(3):
                sheet[32 * r : 32 * r + 32, 32 * c : 32 * c + 32] = tiles[r, c].transpose(1, 2, 0)
        Image.fromarray(sheet).save(folder / f"{name}.webp", lossless=True)
    train = np.concatenate([BATCHES[name][1] for name in NAMES[:5]]).astype(np.uint8)
    np.savez(folder / "index.npz", train_labels=train, test_labels=BATCHES["test_batch"][1].astype(np.uint8))
    return folder


def write_python3(root: Path) -> Path:
    return write_python(root, python3)


@pytest.mark.parametrize("write", [write_python, write_python3, write_archive, write_binary, write_sheets])
@pytest.mark.parametrize("below", ["", "cifar10"])
def test_every_form_gives_the_same_images(tmp_path: Path, write: Callable[[Path], Path], below: str) -> None:
    write(tmp_path / below if write is not write_sheets else tmp_path)
    for split, names in (("train", NAMES[:5]), ("test", NAMES[5:])):
        got = data.load(Data(name="cifar10", root=str(tmp_path)), split)
        expected = np.concatenate([BATCHES[name][0] for name in names]).reshape(-1, 3, 32, 32)
        assert np.array_equal(got.x.numpy(), expected)
        assert got.y is not None
        assert got.y.tolist() == np.concatenate([BATCHES[name][1] for name in names]).tolist()
        assert got.shape == (3, 32, 32)
        assert got.classes == 10


@pytest.mark.parametrize("write", [write_python, write_binary, write_sheets])
def test_the_root_may_be_the_folder_itself(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    assert len(data.load(Data(name="cifar10", root=str(write(tmp_path))), "test")) == 6


def test_an_incomplete_folder_is_missing_files(tmp_path: Path) -> None:
    (write_python(tmp_path) / "data_batch_3").unlink()
    with pytest.raises(MissingAsset, match="data_batch_1 to data_batch_5"):
        data.load(Data(name="cifar10", root=str(tmp_path)), "train")
    assert len(data.load(Data(name="cifar10", root=str(tmp_path)), "test")) == 6


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch evil",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (write_python(tmp_path) / "test_batch").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}))
    with pytest.raises(RunFailed, match=r"test_batch: .*asks for `(posix|nt)\.system`"):
        data.load(Data(name="cifar10", root=str(tmp_path)), "test")
    assert not Path("evil").exists()
    pickle.loads((tmp_path / "cifar-10-batches-py/test_batch").read_bytes())
    assert Path("evil").exists(), "the control: an ordinary unpickler does run it"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not a CIFAR-10 batch"),
        (python2(*BATCHES["test_batch"])[:-500], "not a CIFAR-10 batch"),
        (pickle.dumps([1, 2]), "not a CIFAR-10 batch"),
        (python3(BATCHES["test_batch"][0][:, :100], BATCHES["test_batch"][1]), "3072 columns"),
        (python3(BATCHES["test_batch"][0].astype(np.int16), BATCHES["test_batch"][1]), "uint8"),
        (python3(BATCHES["test_batch"][0], BATCHES["test_batch"][1][:5]), "5 labels for 6 images"),
        (python3(BATCHES["test_batch"][0], BATCHES["test_batch"][1] - 10), "outside 0..9"),
    ],
)
def test_a_damaged_batch_is_named(tmp_path: Path, raw: bytes, words: str) -> None:
    (write_python(tmp_path) / "test_batch").write_bytes(raw)
    with pytest.raises(RunFailed, match=words) as caught:
        data.load(Data(name="cifar10", root=str(tmp_path)), "test")
    assert str(tmp_path / "cifar-10-batches-py") in str(caught.value)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = write_archive(tmp_path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(RunFailed, match=r"cifar-10-python\.tar\.gz: (cannot be read|holds no)"):
        data.load(Data(name="cifar10", root=str(tmp_path)), "train")


def test_a_truncated_binary_is_named(tmp_path: Path) -> None:
    path = write_binary(tmp_path) / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunFailed, match=r"test_batch\.bin: 18437 bytes are not whole records of 3073"):
        data.load(Data(name="cifar10", root=str(tmp_path)), "test")


def test_damaged_sheets_are_named(tmp_path: Path) -> None:
    folder = write_sheets(tmp_path)
    section = Data(name="cifar10", root=str(tmp_path))
    Image.new("RGB", (96, 63)).save(folder / "data_batch_2.webp", lossless=True)
    with pytest.raises(RunFailed, match=r"data_batch_2\.webp: 96 x 63 pixels are not whole tiles"):
        data.load(section, "train")
    (folder / "test_batch.webp").write_bytes(b"no picture")
    with pytest.raises(RunFailed, match=r"test_batch\.webp: cannot be read"):
        data.load(section, "test")
    (folder / "index.npz").write_bytes(b"no archive")
    with pytest.raises(RunFailed, match=r"index\.npz: cannot be read"):
        data.load(section, "test")
    np.savez(folder / "index.npz", labels=np.zeros(3))
    with pytest.raises(RunFailed, match=r"index\.npz: cannot be read.*test_labels"):
        data.load(section, "test")


@on_real_data
def test_the_real_files() -> None:
    train, test = (data.load(Data(name="cifar10", root=SHARED), split) for split in ("train", "test"))
    assert train.y is not None
    assert train.y.bincount().tolist() == [5000] * 10
    assert test.y is not None
    assert test.y.bincount().tolist() == [1000] * 10
    # Exact sums, so that the published means are met to all their eight digits.
    mean = train.x.numpy().sum((0, 2, 3), dtype=np.int64) / (255 * 50_000 * 1024)
    assert mean == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=5e-9)
    assert train.y[:5].tolist() == [6, 9, 9, 4, 1]
    assert test.y[:5].tolist() == [3, 8, 8, 0, 6]
