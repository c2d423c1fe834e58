"""Ambient training on Gaussians: its minimiser is E[x0 | what was shown], in closed form; and what breaks it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gentk.losses.ambient import further, hidden

S = torch.tensor([[1.0, 0.7, 0.3], [0.7, 1.2, -0.2], [0.3, -0.2, 0.8]], dtype=torch.float64)
SIGMA, ADDED = 0.4, 0.6
T2 = SIGMA**2 + ADDED**2
N = 64
KEPT = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
SEEN = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)  # A: the third is seen in half the images


def moments() -> tuple[Tensor, Tensor, Tensor]:
    """x0, n and eps (N, 3) whose joint first and second moments are exactly theirs: averages are then expectations."""
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(N // 2, 9, generator=gen, dtype=torch.float64)
    x = torch.cat([x, -x])
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / N)).T
    return x[:, :3] @ torch.linalg.cholesky(S).T, x[:, 3:6], x[:, 6:]


def exact(kept: Tensor = KEPT) -> Tensor:
    """G with E[x0 | K x_t] = G K x_t, x_t = x0 + t n."""
    k = torch.diag(kept)[kept > 0]
    return S @ k.T @ torch.linalg.inv(k @ (S + T2 * torch.eye(3, dtype=torch.float64)) @ k.T) @ k


def minimised(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The G at which a quadratic loss is least, by one Newton step from 0; what the loss does not move stays 0."""

    def slope(at: Tensor) -> Tensor:
        at = at.reshape(3, 3).requires_grad_()
        (g,) = torch.autograd.grad(loss(at), at)
        return g.flatten()

    first = slope(torch.zeros(9, dtype=torch.float64))
    hessian = torch.stack([slope(row) - first for row in torch.eye(9, dtype=torch.float64)], 1)
    return -(torch.linalg.pinv(hessian, rtol=1e-9) @ first).reshape(3, 3)


def ambient(g: Tensor, *, seen: Tensor = SEEN, kept: Tensor = KEPT, sigma: float = SIGMA) -> Tensor:
    """The loss of D(x) = G x, the mean over both masks A, with the exact moments."""
    x0, n, eps = moments()
    total = g.new_zeros(())
    for a in seen:
        y = a * (x0 + SIGMA * n)
        s = torch.full((N,), ADDED, dtype=torch.float64)
        loss = further(lambda x, _, __: x @ g.T, y, a.expand(N, 3), (kept * a).expand(N, 3), s, eps, sigma, 0.5)
        total = total + loss.mean()
    return total


def test_the_minimiser_is_the_denoiser_given_what_was_shown() -> None:
    """Closed form, in the pixels shown and in the one that the network never sees, noise of y and all."""
    torch.testing.assert_close(minimised(ambient), exact(), rtol=1e-9, atol=1e-9)


def test_judged_on_what_is_shown_alone_nothing_is_learned_of_the_rest() -> None:
    """Trap (notes, 7.3): the loss masked by K, not by A, leaves D where the network is blind at its start."""
    found = minimised(lambda g: ambient(g, seen=KEPT[None]))
    torch.testing.assert_close(found[:2], exact()[:2], rtol=1e-9, atol=1e-9)
    assert float(found[2].abs().max()) < 1e-9
    assert float(exact()[2].abs().max()) > 0.1


def test_without_further_corruption_the_network_is_never_asked_of_a_hidden_pixel() -> None:
    """Control: K = A. Given the mask that hides it, the third pixel has no gradient; its row is that of other masks."""
    x = moments()[0]
    g = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    a = SEEN[1].expand(N, 3)
    loss = further(lambda x, _, __: x @ g.T, a * x, a, a, torch.ones(N, dtype=torch.float64), x, SIGMA, 0.5).sum()
    (slope,) = torch.autograd.grad(loss, g)
    assert float(slope[2].abs().max()) == 0
    assert float(slope[:2].abs().max()) > 0


def test_without_the_noises_share_it_learns_the_noise() -> None:
    """Control: y taken for x0 (sigma = 0 in the loss) in place of its expectation given x_t: E[y | K x_t], far off."""

    def ignorant(g: Tensor) -> Tensor:
        x0, n, eps = moments()
        y = x0 + SIGMA * n
        return ((KEPT * (y + ADDED * eps)) @ g.T - y).square().mean()

    off = minimised(ignorant) - exact()
    wanted = SIGMA**2 * torch.linalg.inv(S[:2, :2] + T2 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(off[:2, :2], wanted, rtol=1e-9, atol=1e-9)
    assert float(off.abs().max()) > 0.1


def test_the_weight_and_the_mean_by_hand() -> None:
    y = torch.tensor([[[[0.5, 0.0]]]])
    seen, kept = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    s, eps = torch.tensor([0.3]), torch.tensor([[[[1.0, 1.0]]]])
    t2 = 0.4**2 + 0.3**2
    asked: list[Tensor] = []

    def denoise(x: Tensor, mask: Tensor, t: Tensor) -> Tensor:
        asked.extend((x, mask, t))
        return torch.full_like(x, 0.1)

    got = further(denoise, y, seen, kept, s, eps, 0.4, 0.5)
    a = 0.16 / t2
    assert float(got) == pytest.approx((1 / t2 + 4) * ((1 - a) * 0.1 + a * 0.8 - 0.5) ** 2 / 2, rel=1e-5)
    torch.testing.assert_close(asked[0], torch.tensor([[[[0.8, 0.0]]]]))
    assert torch.equal(asked[1], kept)
    assert float(asked[2]) == pytest.approx(t2**0.5)


def test_hiding() -> None:
    """Only what is seen, its share, the same pixels in all channels, and nothing of y is looked at."""
    seen = (torch.rand(500, 1, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.5).float().expand(500, 3, 8, 8)
    kept = hidden(seen, 0.2, torch.Generator().manual_seed(2))
    assert bool((kept <= seen).all())
    share = float(kept[seen > 0].mean())
    assert abs(share - 0.8) < 4 * (0.16 / 16_000) ** 0.5  # four deviations of the mean of 16,000 pixels
    assert torch.equal(kept[:, 0], kept[:, 2])
    assert torch.equal(hidden(seen, 0.0, torch.Generator()), seen)


def test_rows_have_noise_of_their_own_and_without_any_it_is_the_denoising_error() -> None:
    gen = torch.Generator().manual_seed(0)
    y, eps, s = torch.randn(6, 3, generator=gen), torch.randn(6, 3, generator=gen), torch.rand(6, generator=gen) + 0.1
    every, sigma = torch.ones(6, 3), torch.tensor([0.0, 0.4, 0.0, 0.7, 0.4, 0.0])

    def denoise(x: Tensor, _: Tensor, t: Tensor) -> Tensor:
        return x / (1 + t[:, None] ** 2)

    got = further(denoise, y, every, every, s, eps, sigma, 0.5)
    for k in range(6):
        row = slice(k, k + 1)
        alone = further(denoise, y[row], every[row], every[row], s[row], eps[row], float(sigma[k]), 0.5)
        torch.testing.assert_close(got[row], alone)
    error = (denoise(y + s[:, None] * eps, every, s) - y).square().mean(1) * (1 / s**2 + 1 / 0.5**2)
    torch.testing.assert_close(got[sigma == 0], error[sigma == 0])
    assert float((got - error)[sigma > 0].abs().min()) > 0.01
