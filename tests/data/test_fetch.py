from __future__ import annotations

import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from gentk import data
from gentk.errors import MissingAsset
from gentk.recipe.schema import Data


def write(folder: Path) -> None:
    """All four IDX files of a set with seven black images."""
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">4B3I", 0, 0, 8, 3, 7, 28, 28) + bytes(7 * 784)
        )
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 7) + bytes(7))


def pretend_torchvision(monkeypatch: pytest.MonkeyPatch, **datasets: Callable[..., None]) -> None:
    package, module = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    for name, download in datasets.items():
        setattr(module, name, download)
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


def test_absent_files_are_named_with_folders_and_remedies(tmp_path: Path, bare_machine: Path) -> None:
    with pytest.raises(MissingAsset) as caught:
        data.load(Data(name="mnist", root=str(tmp_path)), "train")
    for words in (str(tmp_path), str(bare_machine), "train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        assert words in str(caught.value)
    for words in ("--set data.root=", "GENTK_DATA", "pip install gentk[eval]"):
        assert words in caught.value.hint
    assert caught.value.code == 3


@pytest.mark.parametrize("named", ["root", "GENTK_DATA"])
def test_a_named_folder_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    absent = str(tmp_path / "absent")
    monkeypatch.setenv("GENTK_DATA", absent)
    pretend_torchvision(monkeypatch, CIFAR10=lambda *_, **__: pytest.fail("a typing mistake must not download"))
    with pytest.raises(MissingAsset, match=rf"{named}: no folder {absent}"):
        data.load(Data(name="cifar10", root=absent if named == "root" else None), "test")


def test_torchvision_brings_absent_files_once(
    tmp_path: Path, bare_machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def mnist(root: str, download: bool) -> None:
        print("Downloading")
        calls.append(download)
        write(Path(root) / "MNIST" / "raw")

    pretend_torchvision(monkeypatch, MNIST=mnist)
    for root in (None, str(tmp_path)):
        for split in ("train", "test"):
            assert len(data.load(Data(name="mnist", root=root), split)) == 7
    assert calls == [True], "found in the cache afterwards"
    assert [path.name for path in bare_machine.iterdir()] == ["MNIST"], "no temporary folder is left"
    assert list(tmp_path.iterdir()) == [], "the user's own folder is not written to"
    assert capsys.readouterr().out == "", "stdout is for answers"


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("File not found or corrupted.")])
def test_a_failed_download_leaves_nothing_and_says_why(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(root: str, download: bool) -> None:
        (Path(root) / "FashionMNIST" / "raw").mkdir(parents=True)
        raise error

    pretend_torchvision(monkeypatch, FashionMNIST=broken)
    with pytest.raises(MissingAsset, match=str(error)) as caught:
        data.load(Data(name="fashion-mnist"), "train")
    assert "GENTK_DATA" in caught.value.hint
    assert "pip install" not in caught.value.hint
    assert list(bare_machine.iterdir()) == []


def test_a_second_process_that_was_faster_is_no_error(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mnist(root: str, download: bool) -> None:
        write(Path(root) / "MNIST" / "raw")
        write(bare_machine / "MNIST" / "raw")

    pretend_torchvision(monkeypatch, MNIST=mnist)
    assert len(data.load(Data(name="mnist"), "train")) == 7
