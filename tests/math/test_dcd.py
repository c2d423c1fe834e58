"""Diffusion contrastive divergence on Gaussians and mixtures, against closed forms (checks D1 to D11 of the method).

Data N(1, 1), E = (x - m)^2 / 2v at m = 0, v = 3, unless said. Expectations over x and the noises are by Gauss-Hermite
quadrature, exact for what is polynomial, so that most bounds are those of rounding; where M > 1 noises would make the
grid too large, averages over 400,000 draws, with four standard errors as the bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from gentk.losses.energy import Contrast, contrast, langevin, one_step, posterior, ranking

F64 = torch.float64
Loss = Callable[[Callable[[Tensor], Tensor], Tensor, list[Tensor]], Contrast]


def kl(mean: float, variance: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """KL(N(mean, variance) | N(m, v))."""
    return (variance / v + (mean - m) ** 2 / v - 1 + (v / variance).log()) / 2


def dcd(tau: float, mean: float = 1.0, variance: float = 1.0, m: float = 0.0, v: float = 3.0) -> tuple[float, ...]:
    """DCD of two Gaussians for y = x + sqrt(tau) xi, and its derivatives in m and v, by the two KLs."""
    a, b = torch.tensor(m, dtype=F64, requires_grad=True), torch.tensor(v, dtype=F64, requires_grad=True)
    s = torch.tensor(variance, dtype=F64)
    value = kl(mean, s, a, b) - kl(mean, s + tau, a, b + tau)
    value.backward()
    return float(value.detach()), float(a.grad), float(b.grad)  # type: ignore[arg-type]


def grid(noises: int, nodes: int = 40) -> tuple[list[Tensor], Tensor]:
    """Standard normal nodes (N,) for x and each noise, and their weights (N,)."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    places = torch.tensor(list(itertools.product(range(nodes), repeat=1 + noises)))
    z, w = torch.tensor(z, dtype=F64), torch.tensor(w, dtype=F64)
    return [z[places[:, k]] for k in range(1 + noises)], w[places].prod(1)


def gradient(
    loss: Loss, nodes: list[Tensor], weights: Tensor, mean: float = 1.0, m: float = 0.0, v: float = 3.0
) -> tuple[float, float]:
    """d/dm and d/dv of the expected loss; data N(mean, 1)."""
    a, b = torch.tensor(m, dtype=F64, requires_grad=True), torch.tensor(v, dtype=F64, requires_grad=True)

    def energy(x: Tensor) -> Tensor:
        return ((x - a) ** 2 / (2 * b)).sum(1)

    data, *noises = (z[:, None] for z in nodes)
    (loss(energy, mean + data, noises).loss * weights).sum().backward()
    return float(a.grad), float(b.grad)  # type: ignore[arg-type]


def drawn(loss: Loss, noises: int, n: int = 400_000, seed: int = 0, **at: float) -> tuple[Tensor, Tensor]:
    """The same by n draws in 40 parts: mean (2,) and standard error (2,)."""
    gen = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(40):
        z = [torch.randn(n // 40, generator=gen, dtype=F64) for _ in range(1 + noises)]
        parts.append(gradient(loss, z, torch.full((n // 40,), 40 / n, dtype=F64), **at))
    found = torch.tensor(parts, dtype=F64)
    return found.mean(0), found.std(0) / math.sqrt(40)


def exact_posterior(tau: float, m: float = 0.0, v: float = 3.0) -> Loss:
    """DCD by samples of q(x|y), which is Gaussian: noises are those of y and of the sample."""

    def loss(energy: Callable[[Tensor], Tensor], x: Tensor, noises: list[Tensor]) -> Contrast:
        y = x + math.sqrt(tau) * noises[0]
        return contrast(energy, x, (v * y + tau * m) / (v + tau) + math.sqrt(v * tau / (v + tau)) * noises[1])

    return loss


def ranked(sigma: float, w: float) -> Loss:
    return lambda energy, x, noises: ranking(energy, x, sigma, noises[0], torch.stack(noises[1:]), w=w)


def naive(energy: Callable[[Tensor], Tensor], x: Tensor, noises: list[Tensor]) -> Contrast:
    """Trap T1: the noised datum as the negative."""
    return contrast(energy, x, x + noises[0])


# --- D1 to D5 ---------------------------------------------------------------------------------------------------------


def test_d1_the_value_and_its_gradient() -> None:
    assert dcd(1.0) == pytest.approx((0.161066, -0.083333, 0.024306), abs=5e-7)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_d2_posterior_negatives_give_the_gradient(tau: float) -> None:
    """T8 with tau = 4 = sigma^2, sigma = 2: a variance taken for a deviation, or the reverse, is far off."""
    found = gradient(exact_posterior(tau), *grid(2))
    assert found == pytest.approx(dcd(tau)[1:], abs=1e-9)
    assert gradient(exact_posterior(math.sqrt(tau) if tau > 1 else 0.5), *grid(2)) != pytest.approx(found, rel=0.1)


def test_d3_the_noised_datum_is_no_negative() -> None:
    """T1: the mean gets no signal and the variance shrinks for ever, by tau / 2v^2, as D3 has it."""
    m, v = gradient(naive, *grid(1))
    assert (m, v) == pytest.approx((0.0, 1 / 18), abs=1e-9)
    assert abs(m - dcd(1.0)[1]) > 0.08


def test_d4_self_normalised_importance_is_biased() -> None:
    """w = 0: the table's values at M = 1 (exactly) and 4 and 16; they creep up to DCD's -0.0833 and +0.0243."""
    one = gradient(ranked(1.0, 0.0), *grid(2))
    assert one == pytest.approx((0.0, 0.1111), abs=1e-4)
    for m, expected in ((4, (-0.0623, 0.0427)), (16, (-0.0787, 0.0285))):
        mean, error = drawn(ranked(1.0, 0.0), 1 + m, n=400_000 if m == 4 else 120_000)
        assert bool(((mean - torch.tensor(expected)).abs() < 4 * error + 0.003).all()), (m, mean)
        assert abs(float(mean[1]) - dcd(1.0)[2]) > (0.01 if m == 4 else 0.002)


def test_d5_ranking_has_no_gradient_at_the_truth() -> None:
    """Data N(0, 1), v = 1, tau = 1: with w = 1 zero for M = 1 (to quadrature) and 4; with w = 0 not (T2)."""
    truth = {"mean": 0.0, "m": 0.0, "v": 1.0}
    assert gradient(ranked(1.0, 1.0), *grid(2, 48), **truth) == pytest.approx((0.0, 0.0), abs=2e-6)
    assert gradient(ranked(1.0, 0.0), *grid(2, 48), **truth) == pytest.approx((0.0, 1.0), abs=2e-6)
    mean, error = drawn(ranked(1.0, 1.0), 5, **truth)
    assert bool((mean.abs() < 4 * error).all())
    assert float(error.max()) < 0.003
    mean, error = drawn(ranked(1.0, 0.0), 5, **truth)
    assert float(mean[1]) == pytest.approx(0.206, abs=0.01)


def test_d5_ranking_tends_to_dcd() -> None:
    """64 candidates away from the truth: DCD's gradient within the estimate's error and O(1/M)."""
    mean, error = drawn(ranked(1.0, 1.0), 65, n=80_000)
    assert bool(((mean - torch.tensor(dcd(1.0)[1:])).abs() < 4 * error + 1 / 64 * 0.1).all())


@pytest.mark.parametrize(
    ("steps", "step", "expected"), [(1, 0.1, 0.456), (10, 0.1, 0.189), (40, 0.1, 0.020), (40, 0.5, 0.081)]
)
def test_d5_short_chains_are_biased(steps: int, step: float, expected: float) -> None:
    """D5'': the gradient in v at the truth by Langevin negatives from y. The step is the variance of its noise.

    The chain is linear, so its mean and variance are known: with curvature c = 1 + 1/tau = 2 the table's value is
    (E x-^2 - 1) / 2v^2. Checked against the recursion exactly and against the method's table to its error.
    """
    gain, push = 1 - step * 2 / 2, step / 2  # x <- gain x + push y / tau + sqrt(step) xi
    a, spread = 1.0, 0.0  # x_k = a y + N(0, spread)
    for _ in range(steps):
        a, spread = gain * a + push, gain**2 * spread + step
    exact = (a**2 * 2 + spread - 1) / 2
    gen = torch.Generator().manual_seed(1)
    v = torch.tensor(1.0, dtype=F64, requires_grad=True)

    def energy(x: Tensor) -> Tensor:
        return (x**2 / (2 * v)).sum(1)

    n = 400_000
    x = torch.randn(n, 1, generator=gen, dtype=F64)
    y = x + torch.randn(n, 1, generator=gen, dtype=F64)
    negatives = posterior(
        energy, y, 1.0, lambda z: torch.randn(z.shape, generator=gen, dtype=F64), steps=steps, step_size=step
    )
    assert not negatives.requires_grad
    assert v.grad is None, "T9: sampling leaves the parameters alone"
    contrast(energy, x, negatives).loss.mean().backward()
    assert float(v.grad) == pytest.approx(exact, abs=4 * 1.5 / math.sqrt(n))  # type: ignore[arg-type]
    assert exact == pytest.approx(expected, abs=0.005)


# --- D6 to D9 ---------------------------------------------------------------------------------------------------------


def test_d6_d7_score_matching_and_likelihood_are_its_ends() -> None:
    fisher = 1 * (1 - 1 / 3) ** 2 + (1 / 3) ** 2  # E (-(x - 1) + x/3)^2 for x = 1 + z
    assert fisher == pytest.approx(0.5556, abs=1e-4)
    assert dcd(1e-4)[0] / 5e-5 == pytest.approx(0.555515, abs=1e-6)
    likelihood = float(kl(1.0, torch.tensor(1.0), torch.tensor(0.0), torch.tensor(3.0)))
    assert likelihood == pytest.approx(0.382639, abs=1e-6)
    assert dcd(1e6)[0] == pytest.approx(likelihood, abs=1e-6)


@pytest.mark.parametrize(
    ("time", "expected"),
    [(0.1, (0.027127, -0.01129, 0.00370)), (1.0, (0.212888, -0.12139, 0.03310)), (3.0, (0.357817, -0.28805, 0.05453))],
)
def test_d8_variance_preserving_kernels_are_members_too(time: float, expected: tuple[float, ...]) -> None:
    """y = e^{-T/2} x + sqrt(1 - e^{-T}) xi is sigma^2 = e^T - 1, value and gradient; T is no variance (T8)."""
    tau = math.expm1(time)
    assert dcd(tau) == pytest.approx(expected, abs=1e-5)
    assert gradient(exact_posterior(tau), *grid(2)) == pytest.approx(expected[1:], abs=1e-5)
    assert dcd(time) != pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("v", "full", "usual", "ours"),
    [(0.5, -0.8333, -0.5, -0.75), (1.0, 0.0202, 0.0312, 0.0), (2.0, 0.0491, 0.0332, 0.0450)],
)
def test_d9_contrastive_divergence_drops_a_term(v: float, full: float, usual: float, ours: float) -> None:
    """CD-1, one Langevin step of 0.5, data N(0, 1): the derivative with the chain's own, without, and DCD's at tau 0.5.

    Usual CD is not zero at the truth, v = 1. Its one noise is at quadrature nodes.
    """
    eta = 0.5

    def whole(v: Tensor) -> Tensor:
        """KL(p | q) - KL(p K_v | q): the chain's law depends on v."""
        variance = (1 - eta / (2 * v)) ** 2 + eta
        zero = torch.tensor(0.0, dtype=F64)
        return kl(0.0, torch.tensor(1.0, dtype=F64), zero, v) - kl(0.0, variance, zero, v)

    at = torch.tensor(v, dtype=F64, requires_grad=True)
    whole(at).backward()
    assert float(at.grad) == pytest.approx(full, abs=1e-4)  # type: ignore[arg-type]

    def cd(energy: Callable[[Tensor], Tensor], x: Tensor, noises: list[Tensor]) -> Contrast:
        negatives = langevin(lambda z: -energy(z), x, lambda z: noises[0], steps=1, step_size=eta)
        return contrast(energy, x, negatives)

    found = gradient(cd, *grid(1), mean=0.0, v=v)
    assert found[1] == pytest.approx(usual, abs=1e-4)
    assert dcd(0.5, mean=0.0, v=v)[2] == pytest.approx(ours, abs=1e-4)
    assert gradient(exact_posterior(0.5, v=v), *grid(2), mean=0.0, v=v)[1] == pytest.approx(ours, abs=1e-4)


# --- D10 and D11 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antithetic", [False, True])
def test_d10_one_step_fits_the_variance_of_the_data(antithetic: bool) -> None:
    """E3 at tau = 1, data N(0, 1): the least loss over v is at v = 1; with the gradient's norm at y it is at 2 (T4)."""

    def fitted(loss: Loss) -> float:
        slopes = [(v, gradient(loss, *grid(1), mean=0.0, v=v)[1]) for v in (0.8, 0.99, 1.01, 1.5, 1.99, 2.01, 2.5)]
        return next((a + b) / 2 for (a, down), (b, up) in itertools.pairwise(slopes) if down < 0 < up)

    def ours(energy: Callable[[Tensor], Tensor], x: Tensor, noises: list[Tensor]) -> Contrast:
        return one_step(energy, x, 1.0, noises[0], antithetic=antithetic)

    def at_y(energy: Callable[[Tensor], Tensor], x: Tensor, noises: list[Tensor]) -> Contrast:
        y = (x + noises[0]).requires_grad_()
        (grad,) = torch.autograd.grad(energy(y).sum(), y, create_graph=True)
        return Contrast(2 * (energy(x) - energy(y.detach())) + grad.square().sum(1) / 2, x, x)

    assert fitted(ours) == pytest.approx(1.0)
    assert fitted(at_y) == pytest.approx(2.0)


def test_one_step_tends_to_score_matching() -> None:
    """tau -> 0: the gradient of E[|grad E|^2 / 2 - lap E], whose derivatives at m = 0, v = 3 are in closed form."""
    found = gradient(lambda energy, x, n: one_step(energy, x, 1e-3, n[0]), *grid(1))
    m, v = 0.0, 3.0
    exact = (-(1 - m) / v**2, -(1 + (1 - m) ** 2) / v**3 + 1 / v**2)
    assert found == pytest.approx(exact, abs=1e-6)


def test_the_antithetic_pair_has_less_variance() -> None:
    """At sigma 0.1 the single form's loss is dominated by 2 (E(x) - E(y)) / tau ~ 2 grad E . xi / sigma."""
    gen = torch.Generator().manual_seed(2)
    x, xi = torch.randn(20_000, 4, generator=gen, dtype=F64), torch.randn(20_000, 4, generator=gen, dtype=F64)

    def energy(z: Tensor) -> Tensor:
        return (z.sin() + z**2 / 2).sum(1)

    plain, paired = (one_step(energy, x, 0.1, xi, antithetic=a).loss.detach() for a in (False, True))
    assert float(paired.std()) < float(plain.std()) / 3
    assert float(paired.mean()) == pytest.approx(float(plain.mean()), abs=4 * float(plain.std()) / math.sqrt(20_000))


def test_d11_a_narrow_kernel_does_not_see_weights() -> None:
    """Two modes at +-4 with weights .5/.5 against .9/.1 (T5): DCD over sigma, between Fisher's blindness and the KL.

    At a quarter of the gap, sigma = 2, an eighth of the KL is seen, at a sixteenth a thousandth: the check of recipes.
    """
    x = torch.linspace(-120, 120, 400_001, dtype=F64)

    def log_density(weight: float, variance: float) -> Tensor:
        parts = [math.log(w) - (x - c) ** 2 / (2 * variance) for w, c in ((weight, 4.0), (1 - weight, -4.0))]
        return torch.logaddexp(*parts) - math.log(2 * math.pi * variance) / 2

    def apart(variance: float) -> float:
        p, q = log_density(0.5, variance), log_density(0.9, variance)
        return float(torch.trapezoid(p.exp() * (p - q), x))

    whole = apart(1.0)
    assert whole == pytest.approx(0.5108, abs=2e-4)
    found = {sigma: whole - apart(1 + sigma**2) for sigma in (0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)}
    expected = {0.1: 1e-5, 0.5: 0.0003, 1.0: 0.0046, 2.0: 0.069, 4.0: 0.275, 8.0: 0.435, 16.0: 0.493}
    for sigma, value in expected.items():
        assert found[sigma] == pytest.approx(value, rel=0.15, abs=1e-5), sigma
    assert found[2.0] > whole / 8
    assert found[0.5] < whole / 1000
