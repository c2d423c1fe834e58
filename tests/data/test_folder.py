from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gentk import data
from gentk.data import DataSet
from gentk.errors import MissingAsset, RecipeError, RunFailed
from gentk.recipe.schema import Data

RNG = np.random.default_rng(0)


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (6, 4), **options: object) -> np.ndarray:
    """A random picture of `size` = (width, height); returns its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    pixels = RNG.integers(0, 256, (size[1], size[0], *channels), np.uint8)
    Image.fromarray(pixels, mode=None if mode != "LA" else "LA").save(path, **options)
    return pixels


def load(folder: Path, split: str = "train", **section: object) -> DataSet:
    return data.load(Data(name=f"images:{folder}", **section), split)  # type: ignore[arg-type]


def test_every_tenth_file_in_sorted_order_is_test(tmp_path: Path) -> None:
    pixels = {f"{i:02}.png": save(tmp_path / f"{i:02}.png") for i in reversed(range(21))}
    names = sorted(pixels)
    test, train = load(tmp_path, "test"), load(tmp_path)
    assert len(test) == 3
    assert len(train) == 18
    for got, kept in ((test, names[::10]), (train, [n for n in names if n not in names[::10]])):
        assert np.array_equal(got.x.numpy(), np.stack([pixels[n].transpose(2, 0, 1) for n in kept]))
        assert got.y is None
        assert got.classes == 0
        assert got.kind == "image"
        assert got.shape == (3, 4, 6)


def test_sub_folders_are_classes_only_if_all_pictures_lie_in_one(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / "dog" / f"{i}.png")
        save(tmp_path / "cat" / "deep" / f"{i}.png")
    got = load(tmp_path)
    assert got.classes == 2
    assert got.y is not None
    assert got.y.tolist() == [0] * 5 + [1] * 5  # files 0 (a cat) and 10 (a dog) of twelve are the test split
    assert load(tmp_path, "test").y.tolist() == [0, 1]  # type: ignore[union-attr]
    save(tmp_path / "stray.png")
    assert load(tmp_path).y is None
    assert load(tmp_path).classes == 0


@pytest.mark.parametrize("suffix", ["png", "PNG", "bmp", "webp", "jpg", "jpeg"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    exact = {"webp": {"lossless": True}}.get(suffix, {})
    pixels = save(tmp_path / f"a.{suffix}", **exact)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves on foreign disks")
    got = load(tmp_path, "test")
    assert got.x.shape == (1, 3, 4, 6)
    if not suffix.startswith("jp"):
        assert np.array_equal(got.x[0].numpy(), pixels.transpose(2, 0, 1))


def test_grey_stays_one_channel_unless_one_picture_has_colour(tmp_path: Path) -> None:
    grey = [save(tmp_path / f"{i}.png", "L") for i in range(3)]
    got = load(tmp_path)
    assert got.shape == (1, 4, 6)
    assert np.array_equal(got.x[:, 0].numpy(), np.stack(grey[1:]))
    save(tmp_path / "0.png", "RGB")  # in the other split: both splits must agree
    got = load(tmp_path)
    assert got.shape == (3, 4, 6)
    assert all(np.array_equal(got.x[:, c].numpy(), np.stack(grey[1:])) for c in range(3))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    colour = save(tmp_path / "rgba" / "a.png", "RGBA").astype(float)
    got = load(tmp_path / "rgba", "test").x[0].numpy().transpose(1, 2, 0)
    alpha = colour[..., 3:] / 255
    # Pillow composites in integers: at most one level off the exact value.
    assert np.abs(got - (alpha * colour[..., :3] + (1 - alpha) * 255)).max() <= 1
    grey = save(tmp_path / "la" / "a.png", "LA").astype(float)
    got = load(tmp_path / "la", "test").x[0].numpy()
    alpha = grey[..., 1] / 255
    assert got.shape == (1, 4, 6)
    assert np.abs(got[0] - (alpha * grey[..., 0] + (1 - alpha) * 255)).max() <= 1
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    (tmp_path / "p").mkdir()
    palette.save(tmp_path / "p" / "a.png", transparency=1)
    assert (load(tmp_path / "p", "test").x == 255).all()


def test_exif_orientation_is_applied_before_sizes_are_compared(tmp_path: Path) -> None:
    pixels = save(tmp_path / "a.png", size=(6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: to be turned by 90 degrees clockwise
    save(tmp_path / "b.png", size=(4, 6), exif=exif)
    stored = np.asarray(Image.open(tmp_path / "b.png"))
    assert np.array_equal(load(tmp_path, "test").x[0].numpy(), pixels.transpose(2, 0, 1))
    assert np.array_equal(load(tmp_path).x[0].numpy(), np.rot90(stored, -1).transpose(2, 0, 1))


def test_one_size_for_all_and_the_one_asked_for(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", size=(8, 8))
    assert load(tmp_path, size=8).shape == (3, 8, 8)
    with pytest.raises(RecipeError, match=r"0\.png: 8 x 8 pixels, but `size` says 16 x 16"):
        load(tmp_path, size=16)
    save(tmp_path / "2.png", size=(8, 9))
    for split in ("train", "test"):
        with pytest.raises(RecipeError, match=r"2\.png: 8 x 9 pixels, but .*0\.png says 8 x 8"):
            load(tmp_path, split)


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", size=(64, 64))
    path = tmp_path / "1.png"
    path.write_bytes(path.read_bytes()[:2000])  # the header is whole, the pixels are not
    with pytest.raises(RunFailed, match=r"1\.png: cannot be read"):
        load(tmp_path)
    path.write_bytes(b"no picture")
    with pytest.raises(RunFailed, match=r"1\.png: cannot be read"):
        load(tmp_path)


def test_more_than_eight_bits_are_refused_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 40_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(RecipeError, match=r"a\.png: more than 8 bits"):
        load(tmp_path)


def test_absent_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(MissingAsset, match=r"no folder .*absent"):
        load(tmp_path / "absent")
    with pytest.raises(RecipeError, match="holds no pictures"):
        load(tmp_path)
    save(tmp_path / "only.png")
    with pytest.raises(RecipeError, match="too few for a train split"):
        load(tmp_path)


def test_a_relative_folder_starts_at_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "faces" / "a.png")
    assert len(load(Path("faces"), "test", root=str(tmp_path))) == 1
    monkeypatch.chdir(tmp_path)
    assert len(load(Path("faces"), "test")) == 1
