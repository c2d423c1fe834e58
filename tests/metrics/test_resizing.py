"""The four resizing rules against examples by hand, against each other, and against the packages that define them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from fid_peers import peer
from torch import Tensor
from torch.nn import functional as F

from gentk.metrics.resizing import pil_bicubic, pil_bicubic_bytes, tf1_bilinear, torch_bilinear


def noise(n: int, side: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(side))


def picture(rows: list[list[int]]) -> Tensor:
    return torch.tensor([[rows]], dtype=torch.uint8)


def test_tf1_two_to_three_by_hand() -> None:
    """Pixels of the result lie at 0, 2/3, 4/3 of the source; past the last pixel it goes on flat."""
    out = tf1_bilinear(picture([[0, 3], [6, 9]]), 3)
    torch.testing.assert_close(out[0, 0], torch.tensor([[0.0, 2, 3], [4, 6, 7], [6, 8, 9]]), rtol=0, atol=1e-5)
    # The mistake: half-pixel centres lie at -1/6, 1/2, 7/6.
    half = torch_bilinear(picture([[0, 3], [6, 9]]), 3)
    torch.testing.assert_close(half[0, 0], torch.tensor([[0.0, 1.5, 3], [3, 4.5, 6], [6, 7.5, 9]]), rtol=0, atol=1e-5)


def test_tf1_makes_smaller_by_leaving_out() -> None:
    rows = [[10 * i + j for j in range(4)] for i in range(4)]
    assert tf1_bilinear(picture(rows), 2)[0, 0].tolist() == [[0, 2], [20, 22]]


def test_oblong_images_lose_their_aspect() -> None:
    x = torch.tensor([[[[0, 100, 200, 250]]]], dtype=torch.uint8)
    assert tf1_bilinear(x, 2).tolist() == [[[[0, 200], [0, 200]]]]
    assert pil_bicubic(x, 2).shape == torch_bilinear(x, 2).shape == (1, 1, 2, 2)


@pytest.mark.parametrize("rule", [tf1_bilinear, torch_bilinear, pil_bicubic, pil_bicubic_bytes])
def test_the_same_size_is_left_alone(rule) -> None:  # type: ignore[no-untyped-def]
    x = noise(2, 9)
    out = rule(x, 9)
    assert out.dtype == torch.float32
    assert torch.equal(out, x.float())


def test_clean_is_the_antialiased_bicubic_kernel_in_floats() -> None:
    """torch's antialiased bicubic has the same kernel (a = -1/2), but does not clip: equal to rounding, both ways."""
    for side in (32, 400):
        x = noise(2, side)
        expected = F.interpolate(x.float(), (299, 299), mode="bicubic", antialias=True, align_corners=False)
        torch.testing.assert_close(pil_bicubic(x, 299), expected.clip(0, 255), rtol=0, atol=1e-2)
    enlarged = pil_bicubic(noise(2, 32), 299)
    assert (enlarged % 1 > 0.01).float().mean() > 0.9, "rounded to grey levels"
    assert enlarged.amin() == 0
    assert enlarged.amax() == 255


def test_bytes_are_the_rounded_floats() -> None:
    """Pillow rounds between the two passes, and clips: within a level and a half for pictures that do not overshoot."""
    x = noise(2, 32) // 2 + 64
    assert (pil_bicubic_bytes(x, 224) - pil_bicubic(x, 224)).abs().max() <= 1.5
    assert torch.equal(pil_bicubic_bytes(x, 224) % 1, torch.zeros(2, 3, 224, 224))


def test_rules_are_worlds_apart() -> None:
    """Mean distance in grey levels on white noise, 32 -> 299 and 512 -> 299; 36 and 42 are what others measured."""
    x = noise(8, 32)
    a, b, c = tf1_bilinear(x, 299), torch_bilinear(x, 299), pil_bicubic(x, 299)
    assert 34 < (a - b).abs().mean() < 38
    assert 39 < (a - c).abs().mean() < 45
    x = noise(2, 512)
    assert (tf1_bilinear(x, 299) - pil_bicubic(x, 299)).abs().mean() > 20
    assert (torch_bilinear(x, 299) - pil_bicubic(x, 299)).abs().mean() > 15


@pytest.mark.parametrize("side", [32, 299, 500])
def test_tf1_is_torch_fidelitys(side: int) -> None:
    theirs = peer("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    x = noise(2, side)
    expected = theirs(x.float(), size=(299, 299), align_corners=False)
    torch.testing.assert_close(tf1_bilinear(x, 299), expected, rtol=0, atol=1e-4)  # of 255: rounding of float32


@pytest.mark.parametrize(("rule", "mode"), [(pil_bicubic, "clean"), (torch_bilinear, "legacy_pytorch")])
def test_clean_and_legacy_are_clean_fids(rule, mode: str) -> None:  # type: ignore[no-untyped-def]
    with warnings.catch_warnings():  # it switches warnings off for the whole process
        resize = peer("cleanfid.resize").build_resizer(mode)
    for side in (32, 500):
        x = noise(2, side)
        expected = np.stack([resize(image) for image in x.permute(0, 2, 3, 1).numpy()])
        torch.testing.assert_close(rule(x, 299).permute(0, 2, 3, 1), torch.from_numpy(expected), rtol=0, atol=1e-4)
