"""Test R of the notes: restorers on a Gaussian prior, where the posterior is known; and what each must not do."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gentk import operators
from gentk.errors import RecipeError
from gentk.metrics import posterior as posterior_metrics
from gentk.operators import Operator
from gentk.operators.composed import Dense
from gentk.operators.masks import Masked
from gentk.recipe.operators import Inpaint, Noise
from gentk.restoring import ancestral, ddnm, diffpir, dps, pigdm, reverse
from gentk.solvers import drawn
from tests.operators.cases import GREY, B, every, gens, images
from tests.restoring.gaussian import BLUR, FIRST, S, denoiser, karras, law, posterior

CASES = {
    "see x0, .5": (FIRST, [1.2], 0.5),
    "see x0, .1": (FIRST, [1.2], 0.1),
    "blur, .5": (BLUR, [1.2, -0.3], 0.5),
    "blur, .1": (BLUR, [1.2, -0.3], 0.1),
}
EXACT = {  # of the notes' table: mean; var0, cov, var1
    "see x0, .5": ((0.96, 0.672), (0.200, 0.140, 0.608)),
    "see x0, .1": ((1.188, 0.832), (0.010, 0.007, 0.515)),
    "blur, .5": ((0.676, -0.078), (0.164, -0.045, 0.164)),
    "blur, .1": ((1.465, -0.824), (0.015, -0.010, 0.015)),
}
ISOTROPIC = {
    "see x0, .5": ((0.940, 0.652), (0.213, 0.156, 0.643)),
    "see x0, .1": ((1.184, 0.804), (0.011, 0.009, 0.541)),
    "blur, .5": ((0.643, -0.032), (0.168, -0.053, 0.166)),
    "blur, .1": ((1.401, -0.760), (0.017, -0.012, 0.017)),
}
DPS = {
    "see x0, .5": ((1.199, 0.991), (0.030, 0.000, 0.462)),
    "blur, .5": ((1.57, -0.93), (0.026, 0.026, 0.026)),
    "blur, .1": ((1.57, -0.93), (0.026, 0.026, 0.026)),
}


def case(name: str) -> tuple[Operator, Tensor, float, Tensor]:
    h, y, sigma = CASES[name]
    return Dense(h, (2,), (len(h),)), torch.tensor(y, dtype=torch.float64), sigma, h


def three(covariance: Tensor) -> list[float]:
    return [float(covariance[0, 0]), float(covariance[0, 1]), float(covariance[1, 1])]


@pytest.mark.parametrize("name", CASES)
def test_r_pigdm_with_the_covariance_is_the_posterior(name: str) -> None:
    """Within 5 % of the exact one, in mean and every entry of the covariance, at 400 steps; and closer with more."""
    op, y, sigma, h = case(name)
    mean, covariance = posterior(h, y, sigma)
    assert mean.tolist() == pytest.approx(EXACT[name][0], abs=6e-4)  # the notes' figures have three digits
    assert three(covariance) == pytest.approx(EXACT[name][1], abs=6e-4)
    found, spread = law(pigdm.restore, op, y, sigma, karras(400), covariance=True, solves=2)
    off = float((spread - covariance).abs().max() / covariance.abs().max())
    assert float((found - mean).norm() / mean.norm()) < 0.05
    assert off < 0.05
    _, finer = law(pigdm.restore, op, y, sigma, karras(800), covariance=True, solves=2)
    assert float((finer - covariance).abs().max() / covariance.abs().max()) < 0.6 * off


@pytest.mark.parametrize("name", CASES)
def test_r_pigdm_with_one_variance_is_near_but_biased(name: str) -> None:
    """The notes' figures for r^2 = s^2 / (1 + s^2), by 20 000 chains of another discretisation: within 2 % + 0.01."""
    op, y, sigma, h = case(name)
    found, spread = law(pigdm.restore, op, y, sigma, karras(400), sigma_data=1.0, weight="score")
    wanted, entries = ISOTROPIC[name]
    assert found.tolist() == pytest.approx(wanted, rel=0.02, abs=0.01)
    assert three(spread) == pytest.approx(entries, rel=0.08, abs=0.004)
    mean, _ = posterior(h, y, sigma)
    exact, _ = law(pigdm.restore, op, y, sigma, karras(400), covariance=True, solves=2)
    assert float((found - mean).norm()) > 2 * float((exact - mean).norm())  # the bias is the method's


def chains(name: str, n: int, **own: object) -> Tensor:
    op, y, sigma, _ = case(name)
    gen = torch.Generator().manual_seed(0)
    levels = karras(400)
    start = levels[0] * torch.randn(n, 2, generator=gen, dtype=torch.float64)
    return dps.restore(denoiser(), op, y.expand(n, -1), sigma, start, levels, drawn(gen), **own)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", DPS)
def test_r_dps_is_a_point_and_no_posterior(name: str) -> None:
    """Trap: it fits the noise, whatever sigma is: the mean goes to H^-1 y, the measured variance far below the true."""
    n = 1500
    x = chains(name, n, units="ve")
    h, y, _ = CASES[name]
    mean, spread = x.mean(0), x.T.cov()
    wanted, entries = DPS[name]
    scatter = 4 * (spread.diagonal() / n).sqrt()
    for got, want, by in zip(mean.tolist(), wanted, scatter.tolist(), strict=True):
        assert got == pytest.approx(want, abs=0.01 + by)
    for got, want in zip((spread[0, 0], spread[1, 1]), (entries[0], entries[2]), strict=True):
        assert float(got) == pytest.approx(want, rel=0.25, abs=0.004)
    torch.testing.assert_close(h @ mean, torch.tensor(y, dtype=torch.float64), rtol=0, atol=0.03)
    assert dps.POSTERIOR == "point"


def test_dps_does_not_know_sigma() -> None:
    assert torch.equal(chains("blur, .5", 50), chains("blur, .1", 50))


def test_dps_takes_norms_per_image() -> None:
    """Over the whole batch, as in published code, the step of image 0 would shrink with its neighbours' residuals."""
    op, y, sigma, _ = case("blur, .5")
    levels = karras(20)
    start = levels[0] * images((2,), 5, 8)
    own = lambda n: dps.restore(denoiser(), op, y.expand(n, -1), sigma, start[:n], levels, torch.zeros_like)  # noqa: E731
    torch.testing.assert_close(own(8)[:1], own(1))
    x = start.clone().requires_grad_()
    whole = (y - op(denoiser()(x, levels[0]))).norm()
    single = (y - op(denoiser()(x, levels[0]))).flatten(1).norm(dim=1).sum()
    (g,), (h,) = torch.autograd.grad(whole, x), torch.autograd.grad(single, x)
    assert float(g[0].norm()) < 0.5 * float(h[0].norm())


def test_dps_in_units_of_the_paper() -> None:
    """One step by hand in VP coordinates, x / sqrt(1 + s^2), is one of ours with units vp."""
    op, y, sigma, _ = case("blur, .5")
    s, u = 3.0, 2.0
    x = 3 * images((2,), 1, 4)
    got = dps.restore(denoiser(), op, y.expand(4, -1), sigma, x, [s, u], torch.zeros_like, scale=0.3)
    alpha, beta = 1 / math.sqrt(1 + s**2), 1 / math.sqrt(1 + u**2)
    v = (alpha * x).requires_grad_()
    x0 = denoiser()(v / alpha, s)
    (g,) = torch.autograd.grad((y - op(x0)).norm(dim=1).sum(), v)
    by_hand = beta * ancestral(x, x0.detach(), s, u, torch.zeros_like) - 0.3 * g
    torch.testing.assert_close(got, by_hand / beta)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_pigdms_adaptive_weight_is_the_published_step(sigma: float) -> None:
    """One step by hand in the published coordinates, x / sqrt(1 + s^2): x_u + sqrt(alpha_u alpha_s) grad <D, rest>.

    sigma = 0 is the released code, whose rest is H^+ (y - H D). Control: without the factor sqrt(alpha_u) of that code
    the pull is sqrt(1 + u^2) as long, ten times at u = 10.
    """
    h, y, _ = CASES["blur, .5"]
    op = Dense(h, (2,), (2,))
    s, u, rows = 12.0, 10.0, torch.tensor(y, dtype=torch.float64).expand(4, -1)
    x = s * images((2,), 3, 4)
    got = pigdm.restore(denoiser(), op, rows, sigma, x, [s, u], torch.zeros_like, sigma_data=1.0)
    a, b = 1 / (1 + s**2), 1 / (1 + u**2)  # the published alpha at s and u
    v = (a**0.5 * x).requires_grad_()
    x0 = denoiser()(v / a**0.5, s)
    r2 = s**2 / (1 + s**2)
    eye = torch.eye(2, dtype=torch.float64)
    rest = (rows - x0.detach() @ h.T) @ torch.linalg.inv(r2 * h @ h.T + sigma**2 * eye) @ (r2 * h)
    if sigma == 0:
        torch.testing.assert_close(rest, (rows - x0.detach() @ h.T) @ torch.linalg.pinv(h).T)
    (g,) = torch.autograd.grad((rest * x0).sum(), v)
    still = b**0.5 * ancestral(x, x0.detach(), s, u, torch.zeros_like)
    torch.testing.assert_close(got, (still + (a * b) ** 0.5 * g) / b**0.5)
    pull = got - still / b**0.5
    torch.testing.assert_close(a**0.5 * g / b**0.5, 101**0.5 * pull)


def test_a_draw_is_3_db_below_the_mean_of_draws() -> None:
    """Trap 10: of exact posterior draws the error's variance is twice the posterior's, their mean's 1 + 1 / K of it.

    White data, 40 x 64 numbers: both PSNRs scatter by 10 / ln 10 sqrt(2 / 2560), .12 dB; both at 3 of these: .5.
    """
    n, k, sigma = 40, 16, 0.5
    x = 0.5 * images(GREY, 1, n)
    y = x + sigma * images(GREY, 2, n)
    op = operators.build(Noise(name="noise"), GREY)
    levels = reverse.levels_of(op, sigma, karras(200, high=1.0))
    start = torch.zeros(n * k, *GREY, dtype=torch.float64)
    gen = torch.Generator().manual_seed(3)
    draws = reverse.restore(White(0.5), op, y.repeat_interleave(k, 0), sigma, start, levels, drawn(gen))
    draws = draws.reshape(n, k, *GREY)
    one, mean = (float((each - x).square().mean()) for each in (draws[:, 0], draws.mean(1)))
    assert mean == pytest.approx((1 + 1 / k) * 0.125, rel=3 * (2 / 2560) ** 0.5 + 0.02)
    assert 10 * math.log10(one / mean) == pytest.approx(10 * math.log10(2 / (1 + 1 / k)), abs=0.5)
    assert posterior_metrics.coverage(x, draws) == pytest.approx(0.9, abs=4 * (0.09 / 2560) ** 0.5 + 0.01)


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_the_reverse_process_from_y_is_the_posterior(sigma: float) -> None:
    """Of correlated Gaussian data with noise: within 5 % in every entry, and the error halves with the step.

    The error is about the step in ln s: from .1 to .002 in half of 300 levels, .025.
    """
    op, y = operators.build(Noise(name="noise"), (2,)), torch.tensor([1.2, -0.3], dtype=torch.float64)
    mean, covariance = posterior(torch.eye(2, dtype=torch.float64), y, sigma)
    off = []
    for n in (300, 600):
        levels = list(reverse.levels_of(op, sigma, karras(n, high=1.0)))
        found, spread = law(reverse.restore, op, y, sigma, levels)
        off.append(float((spread - covariance).abs().max() / covariance.abs().max()))
        assert float((found - mean).norm() / mean.norm()) < 0.05
    assert off[0] < 0.05
    assert off[1] < 0.6 * off[0]


def test_the_reverse_process_needs_a_sample_of_its_own() -> None:
    """Controls: begun at another level it is another law; other operators and grids without a level are refused."""
    op, y = operators.build(Noise(name="noise"), (2,)), torch.tensor([1.2, -0.3], dtype=torch.float64)
    _, covariance = posterior(torch.eye(2, dtype=torch.float64), y, 0.5)
    _, spread = law(reverse.restore, op, y, 0.25, list(reverse.levels_of(op, 0.25, karras(200, high=1.0))))
    assert float(spread[0, 0]) < 0.6 * float(covariance[0, 0])
    with pytest.raises(RecipeError, match="undoes noise alone"):
        reverse.levels_of(case("blur, .5")[0], 0.5, karras(10))
    with pytest.raises(RecipeError, match="not one level"):
        reverse.levels_of(op, 0.001, karras(10))


def test_conjugate_gradients_stop_when_they_are_done() -> None:
    """More solves than numbers change nothing, a residual of 0 stays 0, and fewer solves are not the posterior."""
    op, y, sigma, _ = case("blur, .1")
    levels = karras(100)
    two, spread = law(pigdm.restore, op, y, sigma, levels, covariance=True, solves=2)
    ten, wide = law(pigdm.restore, op, y, sigma, levels, covariance=True, solves=10)
    torch.testing.assert_close(two, ten, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(spread, wide, rtol=1e-5, atol=1e-8)
    still = pigdm._solved(op, lambda v: v, sigma, torch.zeros(3, 2, dtype=torch.float64), 5)
    assert torch.equal(still, torch.zeros(3, 2, dtype=torch.float64))
    minus = pigdm._solved(op, lambda v: -9 * v, sigma, torch.ones(3, 2, dtype=torch.float64), 5)
    assert bool(minus.isfinite().all())


class White:
    """The exact denoiser of N(0, sd^2)."""

    def __init__(self, sd: float) -> None:
        self.sd = sd

    def __call__(self, x: Tensor, s: float) -> Tensor:
        return self.sd**2 / (self.sd**2 + s**2) * x


def ends(restore: object, op: Operator, y: Tensor, sigma: float, **own: object) -> Tensor:
    levels = karras(25, high=20.0)
    x = levels[0] * images(op.shape, 7, len(y))
    return restore(White(0.5), op, y, sigma, x, levels, drawn(torch.Generator().manual_seed(0)), **own)  # type: ignore[operator]


OPERATORS = ("noise", "inpaint", "mask file", "box", "downsample", "grey", "blur", "blur, downsample", "grey, box")


@pytest.mark.parametrize("name", OPERATORS)
def test_on_a_white_prior_both_forms_of_pigdm_agree(name: str, tmp_path: Path) -> None:
    """There s^2 J = r^2 1: the isotropic form is the covariance form, whatever the operator."""
    op = every(tmp_path)[name]
    y = operators.measure(op, 0.5 * images(op.shape), 0.3, images(op.measured, 1))
    a = ends(pigdm.restore, op, y, 0.3, sigma_data=0.5, weight="score")
    b = ends(pigdm.restore, op, y, 0.3, covariance=True, solves=60)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_without_noise_ddnm_and_diffpir_end_on_the_data(name: str, tmp_path: Path) -> None:
    op = every(tmp_path)[name]
    truth = 0.5 * images(op.shape)
    y = op(truth)
    for found in (ends(ddnm.restore, op, y, 0.0), ends(diffpir.restore, op, y, 0.0)):
        torch.testing.assert_close(op(found), y, rtol=1e-6, atol=1e-7)
        if name in ("inpaint", "downsample"):
            assert float((found - truth).abs().max()) > 0.1  # the rest is the prior's


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("fresh", [1.0, 0.2, 0.01])
def test_ddnm_leaves_the_same_noise_in_every_direction(name: str, fresh: float, tmp_path: Path) -> None:
    """Covariance of correction plus fresh noise, by their matrices: fresh^2 1, however small a singular value."""
    sigma = 0.1
    op = every(tmp_path)[name]
    from tests.operators.cases import row

    op = row(op, 0)
    d = math.prod(op.shape)
    eye = torch.eye(d, dtype=torch.float64).reshape(d, *op.shape)
    m = math.prod(op.measured)
    unit = torch.eye(m, dtype=torch.float64).reshape(m, *op.measured)
    a = ddnm.corrected(op, sigma * op.seen(unit), sigma, fresh).flatten(1)
    b = ddnm.left(op, eye, sigma, fresh).flatten(1)
    torch.testing.assert_close(a.T @ a + b.T @ b, fresh**2 * torch.eye(d, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_ddnm_without_its_plus_blows_noise_up(tmp_path: Path) -> None:
    """Control: with noisy y taken as exact, a wide blur's smallest singular value amplifies it without bound."""
    op = every(tmp_path)["wide blur"]
    y = operators.measure(op, 0.5 * images(op.shape), 0.1, images(op.measured, 1))
    assert float(ends(ddnm.restore, op, y, 0.1).abs().max()) < 5
    assert float(ends(ddnm.restore, op, y, 0.0).abs().max()) > 20


def test_diffpir_takes_the_proximal_step() -> None:
    """At the clean end one step is the minimiser: the gradient of the paper's objective is 0 there."""
    op, y, sigma, _ = case("blur, .5")
    x = images((2,), 3, 4)
    s, weight = 0.7, 7.0
    found = diffpir.restore(denoiser(), op, y.expand(4, -1), sigma, x, [s, 0.0], torch.zeros_like, weight=weight)
    v = found.requires_grad_()
    x0 = denoiser()(x, s)
    objective = (y - op(v)).square().sum() / sigma**2 + weight / s**2 * (v - x0).square().sum()
    (g,) = torch.autograd.grad(objective, v)
    assert float(g.abs().max()) < 1e-9


@pytest.mark.parametrize("restore", [dps.restore, pigdm.restore, ddnm.restore, diffpir.restore])
def test_hidden_pixels_pull_nothing(restore: object) -> None:
    """What a mask hides is 0 in y; a restorer that took it for a measurement would pull these pixels to 0 (grey)."""
    found = flat_images(restore)
    assert float((found - 1).abs().max()) < 0.35
    assert float((found[..., 3:5, 3:5].mean() - 1).abs()) < 0.2


def flat_images(restore: object, **own: object) -> Tensor:
    """Restored from images of ones with a hole, by a prior whose images are constant, their value N(0, 1)."""
    mask = torch.ones(1, 1, 8, 8)
    mask[..., 3:5, 3:5] = 0
    op = Masked(GREY, mask)
    one = torch.ones(B, *GREY, dtype=torch.float64)

    def flat(x: Tensor, s: float) -> Tensor:
        n = x[0].numel()
        return (x.mean((1, 2, 3), keepdim=True) * n / (n + s**2)).expand_as(x)

    levels = karras(60)
    x = levels[0] * images(GREY, 7, B)
    gen = torch.Generator().manual_seed(0)
    return restore(flat, op, op(one), 0.05, x, levels, drawn(gen), **own)  # type: ignore[operator,no-any-return]


def test_pixels_that_move_as_one_need_the_covariance_or_the_papers_weight() -> None:
    """Control: the isotropic score takes 60 equal pixels for 60 witnesses, and explodes."""
    assert float((flat_images(pigdm.restore, covariance=True, solves=3) - 1).abs().max()) < 0.05
    assert float(flat_images(pigdm.restore, weight="score").abs().max()) > 1e3


def test_rows_do_not_know_of_each_other() -> None:
    """Restored alone or in a batch: the same, with each image's own mask."""
    section = Inpaint(name="inpaint", keep=(0.2, 0.8))
    y = images(GREY)
    levels = karras(12)
    start = levels[0] * images(GREY, 9)
    for restore in (dps.restore, pigdm.restore, ddnm.restore, diffpir.restore):
        op = operators.build(section, GREY, gens())
        whole = restore(White(0.5), op, op(y), 0.1, start, levels, torch.zeros_like)
        one = operators.build(section, GREY, gens()[2:])
        alone = restore(White(0.5), one, one(y[2:]), 0.1, start[2:], levels, torch.zeros_like)
        torch.testing.assert_close(whole[2:], alone)


def test_the_prior_alone() -> None:
    """Nothing measured: ancestral sampling of the prior, whose law it must have (the notes' section 7.4)."""
    nothing = Dense(torch.zeros(1, 2, dtype=torch.float64), (2,), (1,))
    for restore, own in (
        (pigdm.restore, {"weight": "score"}),
        (pigdm.restore, {}),
        (pigdm.restore, {"covariance": True}),
    ):
        mean, spread = law(restore, nothing, torch.zeros(1, dtype=torch.float64), 0.5, karras(400), **own)
        torch.testing.assert_close(mean, torch.zeros(2, dtype=torch.float64))
        torch.testing.assert_close(spread, S, rtol=0.05, atol=0.05)
