"""What every reward network is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from gentk.errors import RunFailed
from gentk.rewards import pixels
from tests.rewards.conftest import noise, pictures

SIZES = [(48, 40), (40, 48), (33, 97), (32, 32), (20, 20), (301, 224)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_uint8_is_cropped_as_torchvision_crops_pillow_images(height: int, width: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    reference = transforms.Compose(
        [
            transforms.Resize(32, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
        ]
    )
    x = pictures(2, height, width)
    expected = torch.stack([reference(Image.fromarray(np.asarray(image.permute(1, 2, 0)))) for image in x])
    torch.testing.assert_close(pixels.crop(x, 32), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_floats_are_cropped_as_torchvision_crops_tensors(height: int, width: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    reference = transforms.Compose(
        [transforms.Resize(32, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(32)]
    )
    x = noise(2, 3, height, width)
    torch.testing.assert_close(pixels.crop(x, 32), reference(x), rtol=0, atol=1e-6)


def test_the_two_paths_agree_to_a_grey_level_and_without_antialiasing_they_would_not() -> None:
    x = pictures(1, 200, 160).clamp(40, 215)  # so that overshoot, which only Pillow clips, stays within the range
    exact = pixels.crop(x, 32)
    # Pillow rounds twice, after each axis: half a level each, the first one spread by weights whose moduli sum to 1.3.
    assert (pixels.crop(x / 255, 32) - exact).abs().max() < 1.5 / 255
    sampled = torch.nn.functional.interpolate(x / 255, (40, 32), mode="bicubic")[:, :, 4:36]
    assert (sampled - exact).abs().max() > 20 / 255


def test_gradients_reach_every_pixel_that_is_not_cropped() -> None:
    x = noise(1, 3, 32, 48).requires_grad_()
    (grad,) = torch.autograd.grad(pixels.normalise(pixels.crop(pixels.check(x), 32)).sum(), x)
    assert (grad[..., 8:40] != 0).all()
    assert (grad[..., :8] == 0).all()


def test_letterbox_of_a_picture_twice_as_wide_as_high() -> None:
    x = noise(1, 3, 64, 128)
    boxed = pixels.letterbox(x, 32)
    inner = torch.nn.functional.interpolate(x, (16, 32), mode="bicubic", antialias=True)
    torch.testing.assert_close(boxed[:, :, 8:24], inner, rtol=0, atol=0)
    assert (boxed[:, :, :8] == 0).all()
    assert (boxed[:, :, 24:] == 0).all()
    # The bars are black, not the mean colour: zero before normalisation.
    bar = -torch.tensor(pixels.MEAN) / torch.tensor(pixels.STD)
    torch.testing.assert_close(pixels.normalise(boxed)[0, :, 0, 0], bar)
    # The control: a crop does not see the ends.
    ends = x.clone()
    ends[..., :16] = 0
    assert torch.equal(pixels.crop(ends, 32)[..., 4:28], pixels.crop(x, 32)[..., 4:28])
    assert not torch.equal(pixels.letterbox(ends, 32), boxed)


def test_letterbox_of_odd_rests_and_of_the_right_size() -> None:
    assert pixels.letterbox(noise(1, 3, 97, 33), 32).shape == (1, 3, 32, 32)  # 11 wide: 10 columns left, 11 right
    columns = pixels.letterbox(torch.ones(1, 3, 97, 33), 32)[0, 0, 5] > 0.5
    assert columns.nonzero().flatten().tolist() == list(range(10, 21))
    x = noise(1, 3, 32, 32)
    assert torch.equal(pixels.letterbox(x, 32), x)
    assert pixels.letterbox(noise(1, 3, 16, 32), 32).shape == (1, 3, 32, 32)  # only bars, no resize
    x = pictures(1, 64, 64)
    torch.testing.assert_close(pixels.letterbox(x, 32), pixels.letterbox(x / 255, 32))


def test_antialiasing_is_what_changed_published_hps_figures() -> None:
    x = noise(1, 3, 512, 512)
    difference = (pixels.letterbox(x, 224) - pixels.letterbox(x, 224, antialias=False)).abs().mean()
    assert difference > 0.04  # evaluation.md measures 0.042 of the full range on such noise, of other colours


def test_lanczos_takes_the_centred_square() -> None:
    x = pictures(1, 64, 100)
    out = pixels.square_lanczos(x, 32)
    square = Image.fromarray(np.asarray(x[0, :, :, 18:82].permute(1, 2, 0)))
    expected = np.asarray(square.resize((32, 32), Image.Resampling.LANCZOS))
    assert out.dtype == torch.uint8
    np.testing.assert_array_equal(out[0].permute(1, 2, 0).numpy(), expected)
    with pytest.raises(RunFailed, match="uint8"):
        pixels.square_lanczos(noise(1, 3, 64, 64), 32)


def test_no_pictures_is_no_fault() -> None:
    for none in (torch.zeros(0, 3, 40, 40), torch.zeros(0, 3, 40, 40, dtype=torch.uint8)):
        assert pixels.crop(pixels.check(none, []), 32).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("images", "prompts", "match"),
    [
        (torch.zeros(3, 8, 8), None, "shape"),
        (torch.zeros(1, 1, 8, 8), None, "shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), None, "int64"),
        (torch.full((1, 3, 8, 8), -1.0), None, "from -1 to -1"),
        (torch.full((1, 3, 8, 8), 255.0), None, "expected \\[0, 1\\]"),
        (torch.full((1, 3, 8, 8), float("nan")), None, "expected \\[0, 1\\]"),
        (torch.zeros(2, 3, 8, 8), ["one"], "1 prompt"),
        (torch.zeros(2, 3, 8, 8), "ab", "1 prompt"),  # a string is a sequence of strings
    ],
)
def test_refusals(images: torch.Tensor, prompts: list[str] | None, match: str) -> None:
    with pytest.raises(RunFailed, match=match):
        pixels.check(images, prompts)


def test_half_precision_is_widened() -> None:
    assert pixels.check(torch.ones(1, 3, 8, 8, dtype=torch.bfloat16)).dtype == torch.float32
