"""Pictures show every image, pixel for pixel, and appear on disk whole or not at all."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from gentk.engine import pictures


def distinct(n, channels=1, side=8):
    """Images that no two pixels-and-places of which could be confused: value = 7 index + 31 row + 3 column."""
    index, channel, row, column = np.ogrid[:n, :channels, :side, :side]
    return ((7 * index + 50 * channel + 31 * row + 3 * column) % 251).astype(np.uint8)


def tile(sheet, place, columns, side, scale):
    """The pixels of one tile of a grid, one per image pixel, (side, side, 3)."""
    step = side * scale + 2
    top, left = place // columns * step + 2, place % columns * step + 2
    return np.asarray(sheet)[top : top + side * scale : scale, left : left + side * scale : scale]


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_every_pixel_where_it_belongs(channels):
    images = distinct(7, channels)
    sheet = pictures.grid(images, columns=3, scale=5)
    assert sheet.size == (3 * 42 + 2, 3 * 42 + 2)
    for k in range(7):
        wanted = np.broadcast_to(images[k].transpose(1, 2, 0), (8, 8, 3))
        assert np.array_equal(tile(sheet, k, 3, 8, 5), wanted)


def test_enlarging_repeats_pixels_and_invents_none():
    images = distinct(1)
    sheet = np.asarray(pictures.grid(images, scale=6))[2:50, 2:50, 0]
    assert np.array_equal(sheet, images[0, 0].repeat(6, axis=0).repeat(6, axis=1))


@pytest.mark.parametrize(("side", "scale"), [(8, 7), (28, 2), (32, 2), (64, 1), (256, 1)])
def test_small_images_are_enlarged_by_themselves(side, scale):
    assert pictures.grid(distinct(1, side=side)).width == side * scale + 4


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (4, 2), (5, 3), (64, 8)])
def test_grid_is_about_square(n, columns):
    assert pictures.grid(distinct(n), scale=1).width == columns * 10 + 2


def test_tensors_do_as_well():
    images = distinct(4, 3)
    assert pictures.grid(torch.from_numpy(images)).tobytes() == pictures.grid(images).tobytes()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((4, 1, 8, 8), np.float32),
        np.zeros((4, 8, 8), np.uint8),
        np.zeros((4, 2, 8, 8), np.uint8),
        np.zeros((0, 1, 8, 8), np.uint8),
    ],
)
def test_other_arrays_are_refused(images):
    with pytest.raises(ValueError, match="uint8"):
        pictures.grid(images)


def test_side_by_side_holds_every_grid_and_caption():
    panels = {name: distinct(4 * k)[-4:] for k, name in enumerate(("teacher", "student", "fake"), start=1)}
    for count in (2, 3):
        some = dict(list(panels.items())[:count])
        sheet = np.asarray(pictures.side_by_side(some, columns=2, scale=10))
        for k, images in enumerate(some.values()):
            x = 16 + k * (166 + 16)
            wanted = np.asarray(pictures.grid(images, columns=2, scale=10))
            assert np.array_equal(sheet[48 : 48 + 166, x : x + 166], wanted)
            assert (sheet[:48, x : x + 166] < 100).any(), "no caption"
        assert sheet.shape[1] == 16 + count * (166 + 16)


def test_a_long_caption_widens_the_picture():
    narrow = pictures.side_by_side({"a": distinct(1), "b": distinct(1)})
    wide = pictures.side_by_side({"a": distinct(1), "the student after one evaluation of its network": distinct(1)})
    assert wide.width > narrow.width + 200


def test_pairs_need_equal_shapes():
    with pytest.raises(ValueError, match="equal shapes"):
        pictures.side_by_side({"a": distinct(4), "b": distinct(5)})


@pytest.fixture
def cloud():
    return np.random.default_rng(0).normal(size=(500, 2))


def blue(picture):
    """Where points are drawn: (x, y) of pixels that are clearly blue."""
    pixels = np.asarray(picture).astype(int)
    rows, columns = np.nonzero(pixels[..., 2] - pixels[..., 0] > 40)
    return columns, rows


def test_scatter_has_one_panel_per_set_on_equal_axes(cloud):
    both = pictures.scatter({"data": cloud, "student": cloud})
    assert both.width > 1.8 * pictures.scatter({"data": cloud}).width
    columns, _ = blue(both)
    left, right = (columns < both.width / 2).sum(), (columns >= both.width / 2).sum()
    assert left == pytest.approx(right, rel=0.1)
    assert left > 500
    shrunk, _ = blue(pictures.scatter({"data": cloud, "student": cloud / 4}))
    assert np.ptp(shrunk[shrunk >= both.width / 2]) < 0.4 * np.ptp(shrunk[shrunk < both.width / 2])


def test_stray_and_broken_points_do_not_shrink_the_picture(cloud):
    stray = np.concatenate([cloud, [[1e6, 0.0], [np.nan, 0.0], [np.inf, 1.0]]])
    one, other = pictures.scatter({"data": cloud}), pictures.scatter({"data": stray})
    assert np.ptp(blue(other)[0]) == pytest.approx(np.ptp(blue(one)[0]), rel=0.05)


def test_points_in_another_shape_are_refused(cloud):
    with pytest.raises(ValueError, match="student: points must be"):
        pictures.scatter({"data": cloud, "student": cloud[:, :1]})


def test_degenerate_sets_still_draw():
    for points in (np.zeros((3, 2)), np.full((2, 2), np.nan), np.empty((0, 2))):
        assert pictures.scatter({"data": points}).width > 0


def test_pyplot_and_torch_stay_out():
    code = (
        "import sys, numpy as np\nfrom gentk.engine import pictures\npictures.scatter({'a': np.eye(2)})\n"
        "assert not {'matplotlib.pyplot', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_saved_pictures_read_back_equal(tmp_path):
    sheet = pictures.grid(distinct(4, 3))
    path = pictures.save(sheet, tmp_path / "samples" / "a-00000100.png")
    assert Image.open(path).tobytes() == sheet.tobytes()
    assert [each.name for each in path.parent.iterdir()] == ["a-00000100.png"]


def test_a_broken_write_leaves_the_picture_that_was_there(tmp_path, monkeypatch):
    path = pictures.save(pictures.grid(distinct(4)), tmp_path / "a.png")
    before = path.read_bytes()

    def full_disk(self, target, **options):
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        pictures.save(pictures.grid(distinct(1)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
