"""`images:FOLDER`: the pictures of a folder, at any depth, as one data set held in memory.

Every tenth file in sorted order, beginning with the first, is the test split. If every picture lies in a sub-folder,
the first-level sub-folders in sorted order are the classes; else there are no labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from gentk.data.arrays import Arrays, Split
from gentk.errors import MissingAsset, RecipeError, RunFailed
from gentk.recipe.schema import Data

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_GREY = frozenset({"1", "L", "LA", "La"})
_DEEP = ("I", "F")  # modes of more than 8 bits; conversion would clip them without a word
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # Pillow's ways to say so


def read(section: Data, split: Split) -> Arrays:
    """x (N, C, H, W) with C = 1 if the whole folder is grey, else 3; y by sub-folder, or None.

    FOLDER is relative to `data.root` if that is given, else to the current folder. EXIF orientation is applied and
    transparency is laid on white. Raises MissingAsset if the folder is absent, RecipeError if it holds no pictures or
    they differ in size or depth, RunFailed for a picture that cannot be read.
    """
    folder = Path(section.root or "").expanduser() / Path(section.name.partition(":")[2]).expanduser()
    if not folder.is_dir():
        raise MissingAsset(
            f"{section.name}: no folder {folder}",
            hint="it is relative to `data.root` if that is given, else to the current one",
        )
    files = pictures(folder)
    grey = survey(files, None if section.size is None else (section.size, section.size))
    chosen = [i for i in range(len(files)) if (i % 10 == 0) == (split == "test")]
    if not chosen:
        raise RecipeError(f"{section.name}: {len(files)} picture(s) are too few for a {split} split")
    x = torch.from_numpy(np.stack([pixels(files[i], grey) for i in chosen]))
    places = [path.relative_to(folder).parts for path in files]
    if any(len(place) == 1 for place in places):
        return Arrays(x, None, 0)
    classes = sorted({place[0] for place in places})
    return Arrays(x, torch.tensor([classes.index(places[i][0]) for i in chosen]), len(classes))


def pictures(folder: Path) -> list[Path]:
    """The picture files below a folder, sorted by their path in it. Raises RecipeError where there are none."""
    files = sorted(
        (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    if not files:
        raise RecipeError(f"{folder} holds no pictures", hint=f"read are {', '.join(sorted(_SUFFIXES))}")
    return files


def survey(files: list[Path], side: tuple[int, int] | None = None) -> bool:
    """Checks all sizes and depths from the headers alone; returns whether every picture is grey.

    `side`: the (width, height) that they must have; None: that of the first. Raises as `read`.
    """
    expected, source, grey = side, "`size`", True
    for path in files:
        try:
            with Image.open(path) as image:
                # Orientations 5 to 8 lie on their side: width and height change places.
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                size = (image.height, image.width) if turned else (image.width, image.height)
                mode = image.mode
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error
        if mode.startswith(_DEEP):
            raise RecipeError(f"{path}: more than 8 bits per channel (mode {mode})", hint="convert it to 8 bits")
        if expected is None:
            expected, source = size, str(path)
        if size != expected:
            raise RecipeError(
                f"{path}: {size[0]} x {size[1]} pixels, but {source} says {expected[0]} x {expected[1]}",
                hint="all pictures of a folder must have one size: crop or resize them first",
            )
        grey = grey and mode in _GREY
    return grey


def pixels(path: Path, grey: bool) -> NDArray[np.uint8]:
    """One picture upright and opaque: uint8 (C, H, W). Raises RunFailed, naming the file, if it cannot be read."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.has_transparency_data:
                layer = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    return np.ascontiguousarray(pixels[None] if grey else pixels.transpose(2, 0, 1))


def _unreadable(path: Path, error: BaseException) -> RunFailed:
    return RunFailed(f"{path}: cannot be read as a picture ({error})", hint="repair it or take it out of the folder")
