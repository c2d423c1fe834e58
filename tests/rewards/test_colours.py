from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gentk.metrics.geneval import COLOURS, Detection
from gentk.rewards import colours
from gentk.rewards.colours import ClipColours, cut
from tests.rewards.conftest import CPU, pictures

RGB = {"red": (255, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 255)}


class Seeing:
    """An encoder whose space is red, green and blue: of a picture the mean, of a text those it names."""

    side, record = 32, {"encoder": "seeing"}

    def __init__(self) -> None:
        self.read: list[str] = []

    def image(self, x: Tensor) -> Tensor:
        return F.normalize(x.mean((2, 3)) - 0x99 / 255, dim=-1)

    def text(self, prompts: Sequence[str]) -> Tensor:
        self.read += prompts
        found = [[1.0 if f" {c}" in p else -0.5 for c in RGB] for p in prompts]
        return F.normalize(torch.tensor(found), dim=-1)


def box(*corners: float, mask: Tensor | None = None) -> Detection:
    return Detection(corners, 0.9, mask)


def test_each_object_has_the_colour_inside_its_box() -> None:
    image = torch.full((3, 40, 60), 0x99, dtype=torch.uint8)
    places = {"red": (5, 5, 15, 15), "blue": (30, 10, 50, 35)}
    for name, (left, top, right, bottom) in places.items():
        image[:, top:bottom, left:right] = torch.tensor(RGB[name]).view(3, 1, 1)
    clip = Seeing()
    classify = ClipColours(clip)
    assert classify(image, [box(*places["blue"]), box(*places["red"])], "car") == ["blue", "red"]
    assert len(clip.read) == 3 * len(COLOURS)
    assert clip.read[:3] == ["a photo of a red car", "a photo of a red-colored car", "a photo of a red object"]
    classify(image, [box(*places["red"])], "car")
    assert len(clip.read) == 3 * len(COLOURS)  # once for each class


def test_outside_of_the_mask_is_grey() -> None:
    image = torch.tensor(RGB["red"], dtype=torch.uint8).view(3, 1, 1).expand(3, 40, 60).clone()
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[10:20, 10:20] = True
    image[:, 10:20, 10:20] = torch.tensor(RGB["blue"], dtype=torch.uint8).view(3, 1, 1)
    classify = ClipColours(Seeing())
    assert classify(image, [box(0, 0, 60, 40, mask=mask)], "car") == ["blue"]
    assert classify(image, [box(0, 0, 60, 40)], "car") == ["red"]  # the control: the background outweighs it
    out = cut(image, box(5, 5, 25, 30, mask=mask))
    assert out.shape == (3, 25, 20)
    assert out[:, 0, 0].tolist() == [0x99] * 3
    assert out[:, 5, 5].tolist() == list(RGB["blue"])


def test_boxes_on_the_border() -> None:
    image = pictures(1, 40, 60)[0]
    assert torch.equal(cut(image, box(-3, -3, 99, 99)), image)
    assert cut(image, box(59.8, 39.8, 60, 40)).shape == (3, 1, 1)
    assert cut(image, box(10.2, 10.2, 10.3, 20)).shape == (3, 10, 1)


def test_the_mean_of_directions_is_made_a_direction(clip_folder: Callable[..., Path]) -> None:
    pytest.importorskip("transformers")
    classify = colours.build(clip_folder(), where=CPU, offline=True)
    directions = classify._classes("cow")
    texts = [f"a photo of a {c} cow" for c in ("pink",)] + ["a photo of a pink-colored cow", "a photo of a pink object"]
    mean = classify.clip.text(texts).mean(0)
    torch.testing.assert_close(directions[COLOURS.index("pink")], mean / mean.norm())
    assert mean.norm() < 0.999
    assert set(classify(pictures(1)[0], [box(0, 0, 30, 30)], "cow")) <= set(COLOURS)
