"""Implicit samplers' losses against closed forms and quadrature: the checks I1 to I9 of the derivation.

The sampler is x = m + a z, the target N(0, 1) or exp(-x^4 / 4). Each mistake that the field knows is computed beside
the right gradient and must miss the exact value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from gentk.losses import implicit
from gentk.losses.implicit import Field

N = 200_000


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def normal(x: Tensor) -> Tensor:
    return -x.square().sum(1) / 2


def quartic(x: Tensor) -> Tensor:
    return -x.pow(4).sum(1) / 4


def gaussian_score(m: float, variance: float) -> Field:
    return lambda x: -(x - m) / variance


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(m: float, a: float, force: Callable[[Tensor], Tensor], *, noised: Tensor | None = None) -> list[Tensor]:
    """Means and standard errors of d/dm and d/da of a pushed sampler x = m + a z (+ noised), antithetic in z."""
    half = noise(N // 2, 1)
    z = torch.cat([half, -half])
    x = m + a * z + (0 if noised is None else noised)
    along = force(x)
    each = torch.cat([along, along * z], 1)
    paired = (each[: N // 2] + each[N // 2 :]) / 2
    return [paired.mean(0), paired.std(0) / math.sqrt(N // 2)]


def agrees(found: list[Tensor], exact: tuple[float, float], within: float = 5) -> bool:
    mean, error = found
    return bool(((mean - torch.tensor(exact)).abs() <= within * error + 1e-9).all())


def fisher_at(m: float, a: float, log_q: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    score, target = gaussian_score(m, a * a), implicit.score_of(log_q)
    return lambda x: implicit.force(lambda y: implicit.fisher(score, target, y), x)


def part_one(m: float, a: float, log_q: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """S1: the path through the sample alone, as the precursor's code has it."""
    score, target = gaussian_score(m, a * a), implicit.score_of(log_q)
    return lambda x: implicit.force(lambda y: 0.5 * (score(y) - target(y)).square().sum(1), x)


POINTS = [(0.5, 0.7), (1.0, 1.5)]


@pytest.mark.parametrize(("m", "a"), POINTS)
def test_i1_kl_gradient_of_gaussians(m: float, a: float) -> None:
    score, target = gaussian_score(m, a * a), implicit.score_of(normal)
    found = gradient(m, a, lambda x: implicit.kl(score, target, x))
    assert found[1].max() < 0.011
    assert agrees(found, (m, a - 1 / a))
    swapped = implicit.score_of(lambda x: -normal(x))  # S9: an energy in the place of a log-density
    assert not agrees(gradient(m, a, lambda x: implicit.kl(score, swapped, x)), (m, a - 1 / a))


@pytest.mark.parametrize(("m", "a"), POINTS)
def test_i2_i3_fisher_gradient_of_gaussians(m: float, a: float) -> None:
    exact = (m, a - a**-3)
    found = gradient(m, a, fisher_at(m, a, normal))
    assert agrees(found, exact)
    lone = (m * (1 - a**-2), a * (1 - a**-2) ** 2)
    half = gradient(m, a, part_one(m, a, normal))
    assert agrees(half, lone), "part 1 is what the derivation says it is"
    assert not agrees(half, exact, within=20)
    if a < 1:
        assert half[0][1] * found[0][1] < 0, "for a narrow sampler its sign is reversed"


def test_i4_fisher_and_kl_gradients_of_correlated_gaussians() -> None:
    """d = 3, x = b + A z against N(0, C): closed forms by autograd, relative errors in (A, b)."""
    gen = torch.Generator().manual_seed(3)
    root = torch.eye(3) + 0.3 * torch.randn(3, 3, generator=gen)
    inverse = torch.linalg.inv(root @ root.T)
    a = (torch.eye(3) * 0.8 + 0.2 * torch.randn(3, 3, generator=gen)).requires_grad_()
    b = (0.5 * torch.randn(3, generator=gen)).requires_grad_()
    covariance = a @ a.T
    precision = torch.linalg.inv(covariance)
    kl = 0.5 * ((inverse @ covariance).trace() + b @ inverse @ b - torch.logdet(covariance))
    gap = inverse - precision  # u(b + y) = gap y + inverse b
    half_fisher = 0.5 * ((gap @ covariance @ gap).trace() + (inverse @ b).square().sum())
    half = noise(N // 2, 3)
    x = b + torch.cat([half, -half]) @ a.T
    fixed, centre = precision.detach(), b.detach()

    def score(y: Tensor) -> Tensor:
        return -(y - centre) @ fixed

    target = implicit.score_of(lambda y: -0.5 * ((y @ inverse) * y).sum(1))
    forces = {
        "kl": (kl, implicit.kl(score, target, x)),
        "fisher": (half_fisher, implicit.force(lambda y: implicit.fisher(score, target, y), x)),
        "part one": (half_fisher, implicit.force(lambda y: 0.5 * (score(y) - target(y)).square().sum(1), x)),
    }
    errors = {}
    for name, (closed, along) in forces.items():
        exact = torch.cat([g.flatten() for g in torch.autograd.grad(closed, (a, b), retain_graph=True)])
        loss = implicit.pushed(x, along).mean()
        found = torch.cat([g.flatten() for g in torch.autograd.grad(loss, (a, b), retain_graph=True)])
        errors[name] = float((found - exact).norm() / exact.norm())
    # 2e5 draws instead of 2e6: sqrt(10) times the .0021 of the derivation's own check, and as much again for luck
    assert errors["kl"] < 0.014
    assert errors["fisher"] < 0.014
    assert errors["part one"] > 0.5


def quadrature(value: Callable[[Tensor, Tensor, Tensor], Tensor], m: float, a: float) -> tuple[float, float]:
    """The gradient in (m, a) of E_z value(m, a, z), z standard normal, by 80 nodes of Gauss and Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    z, w = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    p = torch.tensor([m, a], requires_grad=True)
    (grad,) = torch.autograd.grad((w * value(p[0], p[1], z)).sum(), p)
    return float(grad[0]), float(grad[1])


def half_fisher_of_quartic(m: Tensor, a: Tensor, z: Tensor) -> Tensor:
    return 0.5 * (-z / a + (m + a * z) ** 3) ** 2


def test_i5_the_divergence_matters_off_gaussians() -> None:
    m, a = 0.4, 0.8
    exact = quadrature(half_fisher_of_quartic, m, a)
    assert exact == pytest.approx((6.232, 15.672), abs=6e-4)
    assert agrees(gradient(m, a, fisher_at(m, a, quartic)), exact)
    score, target = gaussian_score(m, a * a), implicit.score_of(quartic)

    def dropped(y: Tensor) -> Tensor:  # S2
        u = score(y) - target(y)
        return 0.5 * u.square().sum(1) - (u * score(y)).sum(1)

    def detached(y: Tensor) -> Tensor:  # S2: the divergence is there, its graph is not
        u = score(y) - target(y)
        return 0.5 * u.square().sum(1) - (u * score(y)).sum(1) - implicit.divergence(u, y).detach()

    for wrong in (dropped, detached):
        found = gradient(m, a, lambda x, wrong=wrong: implicit.force(wrong, x))
        assert found[0].tolist() == pytest.approx((8.661, 20.605), rel=0.05)
        assert not agrees(found, exact, within=10)


def test_hutchinson_s_probe_gives_the_same_fisher_force_in_the_mean() -> None:
    m, a = 0.4, 0.8
    exact = quadrature(half_fisher_of_quartic, m, a)
    score, target = gaussian_score(m, a * a), implicit.score_of(quartic)
    probe = noise(N, 1, seed=9).sign()
    found = gradient(m, a, lambda x: implicit.force(lambda y: implicit.fisher(score, target, y, probe), x))
    assert agrees(found, exact)
    x = noise(50, 3).requires_grad_()
    mix = noise(3, 3, seed=4)
    field = torch.tanh(x @ mix)
    by_probes = torch.stack([implicit.divergence(field, x, noise(50, 3, seed=s).sign()) for s in range(400)])
    exact_rows = implicit.divergence(field, x)
    assert ((by_probes.mean(0) - exact_rows).abs() <= 5 * by_probes.std(0) / math.sqrt(400) + 1e-12).all()


@pytest.mark.parametrize(("sigma", "stated"), [(0.1, -2.1), (0.5, -0.5783), (1.0, 0.3847)])
def test_i6_denoising_fisher_of_gaussians(sigma: float, stated: float) -> None:
    m, a = 0.5, 0.7
    variance = a * a + sigma * sigma
    exact = (m, a * (1 - variance**-2))
    assert exact[1] == pytest.approx(stated, abs=6e-5)
    eps = noise(N, 1, seed=5)
    score, target = gaussian_score(m, variance), implicit.score_of(normal)

    def force(x: Tensor) -> Tensor:
        return implicit.force(lambda y: implicit.denoising_fisher(score, target, y, eps, sigma), x)

    assert agrees(gradient(m, a, force, noised=sigma * eps), exact)
    stale = gaussian_score(m, a * a)  # the score of the draws themselves: a mistake that the small sigma forgives

    def wrong(x: Tensor) -> Tensor:
        return implicit.force(lambda y: implicit.denoising_fisher(stale, target, y, eps, sigma), x)

    if sigma >= 0.5:
        assert not agrees(gradient(m, a, wrong, noised=sigma * eps), exact, within=20)


def test_i6_denoising_fisher_of_the_quartic() -> None:
    m, a, sigma = 0.5, 0.7, 0.5

    def smoothed(m: Tensor, a: Tensor, z: Tensor) -> Tensor:
        spread = (a * a + sigma * sigma).sqrt()
        return half_fisher_of_quartic(m, spread, z)

    exact = quadrature(smoothed, m, a)
    assert exact == pytest.approx((12.190, 24.082), abs=6e-4)
    eps = noise(N, 1, seed=5)
    score, target = gaussian_score(m, a * a + sigma * sigma), implicit.score_of(quartic)

    def force(x: Tensor) -> Tensor:
        return implicit.force(lambda y: implicit.denoising_fisher(score, target, y, eps, sigma), x)

    assert agrees(gradient(m, a, force, noised=sigma * eps), exact)


@pytest.mark.parametrize(("sigma", "stated"), [(0.1, -0.7), (0.3, -0.5069), (1.0, 0.2302)])
def test_i7_the_noise_of_score_matching_narrows_the_optimum(sigma: float, stated: float) -> None:
    """S5: with sigma as large as the sampler is wide it shrinks where it should grow."""
    m, a = 0.5, 0.7
    exact = (m, a - a / (a * a + sigma * sigma))  # the score net's is that of the smoothed law
    # m enters the score's own centre: only d/da is biased
    assert exact[1] == pytest.approx(stated, abs=6e-5)
    score, target = gaussian_score(m, a * a + sigma * sigma), implicit.score_of(normal)
    assert agrees(gradient(m, a, lambda x: implicit.kl(score, target, x)), exact)


def test_i7_noise_on_both_sides_does_not_narrow_it() -> None:
    """KL of N(m, a^2 + sigma^2) to N(0, 1 + sigma^2): d/da = a / (1 + sigma^2) - a / (a^2 + sigma^2), 0 at a = 1."""
    sigma = 0.5
    for m, a in ((0.5, 0.7), (0.0, 1.0)):
        variance = a * a + sigma * sigma
        exact = (m / (1 + sigma**2), a / (1 + sigma**2) - a / variance)
        score, target = gaussian_score(m, variance), gaussian_score(0, 1 + sigma**2)
        found = gradient(m, a, lambda x: implicit.kl(score, target, x), noised=sigma * noise(N, 1, seed=5))  # noqa: B023
        assert agrees(found, exact)


def test_i8_linear_score_matching_finds_the_smoothed_score_and_is_noisy_for_small_sigma() -> None:
    x = 0.5 + 0.7 * noise(N, 1, seed=7)
    eps = noise(N, 1, seed=8)
    slopes, errors = {}, {}
    for sigma in (0.01, 0.1, 0.3):

        def loss(p: Tensor, sigma: float = sigma) -> Tensor:
            return implicit.dsm(lambda y: p[0] * y + p[1], x, eps, sigma)

        start = torch.zeros(2, requires_grad=True)
        mean = torch.autograd.functional.hessian(lambda p: loss(p).mean(), start.detach())
        assert isinstance(mean, Tensor)
        (slope,) = torch.autograd.grad(loss(start).mean(), start)
        slopes[sigma] = -torch.linalg.solve(mean, slope)  # a quadratic: one step of Newton
        noised = x + sigma * eps
        residual = sigma * (slopes[sigma][0] * noised + slopes[sigma][1]) + eps
        rows = 2 * residual * sigma * torch.cat([noised, torch.ones_like(noised)], 1)  # the loss's gradient, row by row
        inverse = torch.linalg.inv(mean)
        errors[sigma] = (inverse @ (rows.T @ rows / N) @ inverse).diagonal().div(N).sqrt()
    for sigma, stated in ((0.01, -2.04), (0.1, -2.0), (0.3, -1.7241)):
        exact = -1 / (0.49 + sigma**2)
        assert exact == pytest.approx(stated, abs=5e-4)
        wanted = torch.tensor([exact, -0.5 * exact])
        assert ((slopes[sigma] - wanted).abs() < 5 * errors[sigma]).all()
    assert errors[0.01][0] > 8 * errors[0.1][0], "the noise grows as 1 / sigma"


def test_i8_pairs_of_opposite_noise_keep_the_fit_quiet_at_a_small_sigma() -> None:
    """The same draws with eps and -eps: the same minimiser, and at sigma = .01 an error tens of times smaller."""
    x, eps = 0.5 + 0.7 * noise(20_000, 1, seed=7), noise(20_000, 1, seed=8)
    found = {}
    for name, points, noises in (("single", x, eps), ("pairs", torch.cat([x, x]), torch.cat([eps, -eps]))):

        def loss(p: Tensor, points: Tensor = points, noises: Tensor = noises) -> Tensor:
            return implicit.dsm(lambda y: p[0] * y + p[1], points, noises, 0.01).mean()

        start = torch.zeros(2, requires_grad=True)
        hessian = torch.autograd.functional.hessian(loss, start.detach())
        assert isinstance(hessian, Tensor)
        (slope,) = torch.autograd.grad(loss(start), start)
        found[name] = -torch.linalg.solve(hessian, slope)
    exact = torch.tensor([-1 / 0.4901, 0.5 / 0.4901])
    assert (found["pairs"] - exact).norm() < 0.1
    # of eps x / sigma its deviation is 100 x .7 / sqrt(20,000) / .49 = 1.0, of the pairs' eps^2 - 1 only .02
    assert (found["single"] - exact).norm() > 3 * (found["pairs"] - exact).norm()


@pytest.mark.parametrize(("then", "now", "stated", "true"), [(1.2, 0.9, 0.275, -0.2111), (0.9, 1.2, -0.2815, 0.3667)])
def test_i9_a_score_that_lags_reverses_the_push(then: float, now: float, stated: float, true: float) -> None:
    target = implicit.score_of(normal)
    lagged = gradient(0, now, lambda x: implicit.kl(gaussian_score(0, then**2), target, x))
    fresh = gradient(0, now, lambda x: implicit.kl(gaussian_score(0, now**2), target, x))
    assert stated == pytest.approx(now * (1 - then**-2), abs=6e-5)
    assert agrees(lagged, (0, now * (1 - then**-2)))
    assert true == pytest.approx(now - 1 / now, abs=6e-5)
    assert agrees(fresh, (0, now - 1 / now))
    assert lagged[0][1] * fresh[0][1] < 0
    # and Stein's check sees it: E[S.x] + 1 = 1 - (now / then)^2
    x = now * noise(N, 1, seed=2)
    trace, _ = implicit.stein(gaussian_score(0, then**2), x)
    assert abs(float(trace.mean()) - (1 - (now / then) ** 2)) < 5 * float(trace.std()) / math.sqrt(N)
    assert abs(float(trace.mean())) > 0.1
    exact, drift = implicit.stein(gaussian_score(0, now**2), x)
    assert abs(float(exact.mean())) < 5 * float(exact.std()) / math.sqrt(N)
    assert abs(float(drift.mean())) < 5 * float(drift.std()) / math.sqrt(N)


def lag(score_steps: int, lr: float) -> float:
    """I10: the least width on the way from a = 2 to 1, the score's memory of the variance moving at rate .05."""
    a = least = 2.0
    variance = 4.0
    for _ in range(1000):
        for _ in range(score_steps):
            variance += 0.05 * (a * a - variance)
        z = torch.tensor([[-1.0], [1.0]])  # two points with the moments of N(0, 1) that the push needs
        along = implicit.kl(gaussian_score(0, variance), implicit.score_of(normal), a * z)
        a -= lr * float((along * z).mean())
        least = min(least, a)
        if a < 1e-7:
            break
    return least


def test_i10_too_few_score_steps_overshoot_and_a_bold_sampler_collapses() -> None:
    assert lag(1, 0.1) == pytest.approx(0.313, abs=6e-4)
    assert lag(5, 0.1) == pytest.approx(0.885, abs=6e-4)
    assert lag(20, 0.1) == pytest.approx(1.000, abs=6e-4)
    assert lag(1, 1.0) < 1e-6


def test_s1_three_hundred_steps_of_fisher_widen_a_narrow_sampler_and_part_one_does_not() -> None:
    widths = {}
    for name, make in (("fisher", fisher_at), ("part one", part_one)):
        m, a = torch.tensor(0.0, requires_grad=True), torch.tensor(0.7, requires_grad=True)
        z = noise(2000, 1, seed=6)
        z = (z - z.mean()) / z.std()
        optimiser = torch.optim.SGD([m, a], lr=0.02)
        for _ in range(300):
            optimiser.zero_grad()
            x = m + a * z
            force = make(float(m.detach()), float(a.detach()), normal)
            implicit.pushed(x, force(x.detach())).mean().backward()
            optimiser.step()
        widths[name] = float(a.detach())
    assert widths["fisher"] == pytest.approx(1, abs=0.02)
    assert widths["part one"] < 0.7


def test_s3_no_gradient_reaches_score_or_target() -> None:
    scale = torch.tensor(1.0, requires_grad=True)
    net = torch.nn.Linear(2, 2)
    net.requires_grad_(False)
    g = torch.nn.Linear(2, 2)
    z = noise(16, 2)
    for objective in (
        lambda y: implicit.fisher(net, implicit.score_of(lambda v: scale.detach() * normal(v)), y),
        lambda y: implicit.denoising_fisher(net, implicit.score_of(lambda v: scale.detach() * normal(v)), y, z, 0.2),
    ):
        x = g(z)
        implicit.pushed(x, implicit.force(objective, x)).mean().backward()
    x = g(z)
    implicit.pushed(x, implicit.kl(net, implicit.score_of(lambda v: scale * normal(v)), x)).mean().backward()
    assert net.weight.grad is None
    assert scale.grad is None
    assert g.weight.grad is not None


def test_rows_are_clipped_one_by_one_and_keep_their_direction() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    short, cut = implicit.clipped(rows, 1.0)
    torch.testing.assert_close(short, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    assert cut.tolist() == [True, False, False]
    same, none = implicit.clipped(rows, None)
    assert same is rows
    assert not none.any()


def test_s14_relu_score_networks_have_no_divergence_to_differentiate() -> None:
    """The reason why score networks here are smooth: of a ReLU network the graph of div u is zero."""
    x = noise(8, 2).requires_grad_()
    for activation, flat in ((torch.nn.LeakyReLU(0.2), True), (torch.nn.SiLU(), False)):
        net = torch.nn.Sequential(torch.nn.Linear(2, 16), activation, torch.nn.Linear(16, 2))
        (grad,) = torch.autograd.grad(implicit.divergence(net(x), x).sum(), x, allow_unused=True)
        assert (grad is None or bool((grad == 0).all())) is flat
