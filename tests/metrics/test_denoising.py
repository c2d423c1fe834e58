"""Baselines of denoising: the blur is a Gaussian one, and its width is tuned."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter

from gentk.metrics.denoising import blurred, mean_psnr, tuned_blur


def test_the_blur_is_scipy_s() -> None:
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for deviation in (0.6, 1.3):
        reach = max(1, int(3 * deviation + 0.5))
        expected = gaussian_filter(x.numpy(), (0, 0, deviation, deviation), mode="nearest", radius=(0, 0, reach, reach))
        torch.testing.assert_close(blurred(x, deviation), torch.from_numpy(expected))


def test_psnr_of_clipped_images() -> None:
    """Noise of deviation 0.1 in [-1, 1] is 10 log10(4 / 0.01) dB; what leaves the range is clipped first."""
    clean = torch.zeros(20, 1, 32, 32)
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    assert mean_psnr(noisy, clean) == pytest.approx(26.02, abs=0.1)
    assert mean_psnr(torch.full_like(clean, 5.0), clean + 1) == float("inf")


def test_more_noise_asks_for_more_blur() -> None:
    """Smooth waves: the tuned width grows with the noise and beats both the noisy image and a fixed strong blur."""
    t = torch.linspace(0, 6.28, 24)
    clean = (0.5 * (t[:, None].sin() + t[None].cos())).expand(8, 1, 24, 24)
    gen, widths = torch.Generator().manual_seed(2), []
    for sigma in (0.05, 0.5):
        noisy = clean + sigma * torch.randn(clean.shape, generator=gen)
        widths.append(tuned_blur(noisy, clean))
        best = mean_psnr(blurred(noisy, widths[-1]), clean)
        assert best > mean_psnr(noisy, clean)
        assert best >= mean_psnr(blurred(noisy, 2.5), clean)
    assert widths[0] < widths[1]
