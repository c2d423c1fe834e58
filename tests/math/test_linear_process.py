"""Kernels of linear processes: test C of methods/vsdm.md (block exponential, ordered product), and test Z at A = 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from gentk.processes import ornstein, schedules
from gentk.processes.linear import Linear, share
from gentk.processes.process import ratio
from gentk.recipe.linear import Betas

F64 = torch.float64
A1 = torch.tensor([[0.1, 0.25], [0.25, -0.3]], dtype=F64)
A2 = torch.tensor([[0.1, 0.3], [-0.2, -0.3]], dtype=F64)
BETAS = Betas()


def linear(rates: list[list[float]], betas: Betas = BETAS, counts: list[float] | None = None) -> Linear:
    table = torch.tensor(rates, dtype=F64)
    return Linear(betas, table, torch.ones(table.shape[1], dtype=F64) if counts is None else torch.tensor(counts))


def b(t: float) -> float:
    return 0.1 * t + 9.9 * t**2.7 / 2.7


def reference(drift: object, t: float) -> tuple[np.ndarray, np.ndarray]:
    """(m, C) by the moments' ODE, relative tolerance 1e-12."""

    def f(u: float, y: np.ndarray) -> np.ndarray:
        beta, d = 0.1 + 9.9 * u**1.7, drift(u)  # type: ignore[operator]
        m, c = y[:4].reshape(2, 2), y[4:].reshape(2, 2)
        dc = -0.5 * beta * (d @ c + c @ d.T) + beta * np.eye(2)
        return np.concatenate([(-0.5 * beta * d @ m).ravel(), dc.ravel()])

    y0 = np.concatenate([np.eye(2).ravel(), np.zeros(4)])
    y = solve_ivp(f, (0, t), y0, method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
    return y[:4].reshape(2, 2), y[4:].reshape(2, 2)


def off(found: tuple[Tensor, Tensor], exact: tuple[np.ndarray, np.ndarray]) -> float:
    return max(float(np.linalg.norm(a.numpy() - e) / np.linalg.norm(e)) for a, e in zip(found, exact, strict=True))


@pytest.mark.parametrize("a", [A1, A2], ids=["symmetric", "not symmetric"])
@pytest.mark.parametrize("t", [0.3, 1.0])
def test_a_constant_matrix(a: Tensor, t: float) -> None:
    """Within the reference's own error, 1e-11. Control: the drift A for D."""
    d = torch.eye(2, dtype=F64) - 2 * a
    exact = reference(lambda u: d.numpy(), t)
    assert off(ornstein.kernel(d, b(t)), exact) < 1e-11
    assert off(ornstein.kernel(a, b(t)), exact) > 0.01


@pytest.mark.parametrize(
    ("base", "bound", "wrong"), [(1.25, 3e-5, 0.02), (2.0, 1e-4, 0.06)], ids=["0.8 to 1.25", "0.5 to 2"]
)
@pytest.mark.parametrize("a", [A1, A2], ids=["symmetric", "not symmetric"])
def test_a_matrix_that_varies(a: Tensor, base: float, bound: float, wrong: float) -> None:
    """A_t = a(t) A, a = base^(2 t - 1): 100 steps of the ordered product, to the note's 3e-5 and 1e-4.

    Control: the published form, the integral of beta D in one block exponential, is off by percents.
    """

    def drift(t: float) -> Tensor:
        return torch.eye(2, dtype=F64) - 2 * base ** (2 * t - 1) * a

    exact = reference(lambda u: drift(u).numpy(), 1.0)
    found = ornstein.ordered(drift, b, np.linspace(0, 1, 101).tolist())
    assert off(found[-1], exact) < bound
    assert len(found) == 101
    fine = torch.linspace(0, 1, 20_001, dtype=F64)
    mass = torch.diff(torch.tensor([b(float(t)) for t in fine], dtype=F64))
    middle = base ** (2 * (fine[:-1] + fine[1:]) / 2 - 1)
    mean_drift = torch.eye(2, dtype=F64) - 2 * float((mass * middle).sum() / mass.sum()) * a
    published = ornstein.kernel(mean_drift, b(1.0))
    assert off((published[0], torch.as_tensor(exact[1])), exact) < 1e-6  # of its mean there is nothing to say
    assert off(published, exact) > wrong


def test_against_simulated_paths() -> None:
    """Euler-Maruyama on 60,000 paths, 400 steps: mean and covariance at 1 within 4 standard errors and O(dt)."""
    gen = torch.Generator().manual_seed(0)
    x, d = torch.tensor([1.5, -0.7]).repeat(60_000, 1), (torch.eye(2) - 2 * A2.float())
    for k in range(400):
        beta, dt = 0.1 + 9.9 * ((k + 0.5) / 400) ** 1.7, 1 / 400
        x = x - 0.5 * beta * dt * x @ d.T + math.sqrt(beta * dt) * torch.randn(x.shape, generator=gen)
    m, c = ornstein.kernel(d, b(1.0))
    assert (x.mean(0) - m @ torch.tensor([1.5, -0.7], dtype=F64)).abs().max() < 4 * 1.1 / math.sqrt(60_000) + 0.004
    assert (torch.cov(x.T) - c).abs().max() < 4 * 1.2 * math.sqrt(2 / 60_000) + 0.012
    transposed = ornstein.kernel(d.T, b(1.0))[0] @ torch.tensor([1.5, -0.7], dtype=F64)
    assert (x.mean(0) - transposed).abs().max() > 0.05  # the control


@pytest.mark.parametrize("rate", [-1.8, 0.0, 0.4, 3.0])
def test_one_block_of_a_large_integral_neither_overflows_nor_cancels(rate: float) -> None:
    """beta = 0.1 to 1000: b = 370. A D below 0 grows to e^666 in m^2, still exact; one expm of all of it cancels."""
    big = 370.0
    m, c = ornstein.kernel(torch.diag(torch.tensor([rate, 1.0], dtype=F64)), big)
    scalar = share(torch.tensor(rate, dtype=F64), torch.tensor(big, dtype=F64))
    assert float(c[0, 0]) == pytest.approx(float(scalar), rel=1e-10)
    assert float(m[0, 0]) == pytest.approx(math.exp(-0.5 * rate * big), rel=1e-10)
    block = torch.linalg.matrix_exp(
        big * torch.tensor([[-0.5, 0, 1, 0], [0, -2, 0, 1], [0, 0, 0.5, 0], [0, 0, 0, 2]], dtype=F64)
    )
    naive = block[:2, 2:] @ torch.linalg.inv(block[2:, 2:])
    assert not bool(torch.isfinite(naive).all())


def test_covariance_near_time_zero_keeps_its_digits() -> None:
    """t = 1e-3, where C is about 1e-4 I: float32 from float64 has a Cholesky factor to 1e-7."""
    _, c = ornstein.kernel(torch.eye(2, dtype=F64) - 2 * A1, b(1e-3))
    factor = torch.linalg.cholesky(c).float()
    assert torch.dist(factor @ factor.T, c.float()) < 1e-6 * c.norm()
    assert torch.linalg.cond(c) < 1.001


def test_cells_are_composed_exactly() -> None:
    """Two cells and three coordinates against the general ordered product, at times within and between the cells."""
    process = linear([[1.5, -0.5, 0.3], [0.2, 2.0, 0.0]])
    times = [0.0, 0.2, 0.5, 0.7, 1.0]
    for i in range(3):
        found = ornstein.ordered(lambda t, i=i: process.rates[int(t >= 0.5), i].reshape(1, 1), b, times)
        at = torch.tensor(times, dtype=F64)
        torch.testing.assert_close(torch.cat([m for m, _ in found])[:, 0], process.alphas(at)[:, i], rtol=1e-12, atol=0)
        sigma = process.sigmas(at)[:, i]
        torch.testing.assert_close(torch.cat([c for _, c in found])[:, 0], sigma**2, rtol=1e-12, atol=1e-15)


def test_without_a_it_is_the_variance_preserving_process() -> None:
    """Test Z, the kernel: A = 0 and power 1 against `schedules.VP`, to one unit in the last place."""
    process = linear([[1.0, 1.0]], Betas(beta_min=0.1, beta_max=20.0, power=1.0, t_min=1e-5))
    vp = schedules.VP()
    t = torch.linspace(1e-5, 1, 101, dtype=F64)
    for name in ("alpha", "sigma"):
        torch.testing.assert_close(getattr(process, name)(t), getattr(vp, name)(t), rtol=1e-15, atol=2e-16)
    for name in ("d_alpha", "d_sigma"):
        torch.testing.assert_close(getattr(process, name)(t), getattr(vp, name)(t), rtol=1e-11, atol=0)
    assert torch.equal(process.alphas(t), process.alpha(t)[:, None].expand(-1, 2)) or torch.allclose(
        process.alphas(t), process.alpha(t)[:, None], rtol=1e-15, atol=0
    )


@pytest.mark.parametrize("rates", [[[1.3, 0.4, -0.2]], [[1.0, 2.0, 0.0], [0.5, 1.5, -1.0], [1.0, 1.0, 1.0]]])
def test_derivatives_and_inverse(rates: list[list[float]]) -> None:
    process = linear(rates, counts=[1.0, 1.0, 5.0])
    t = torch.tensor([1e-7, 1e-3, 0.11, 0.4, 0.77, 1.0], dtype=F64)
    torch.testing.assert_close(process.t_of(ratio(process, t)), t, rtol=1e-12, atol=0)
    assert float(process.t_of(torch.zeros((), dtype=F64))) == 0
    inside, h = torch.tensor([0.05, 0.21, 0.45, 0.9], dtype=F64), 1e-5
    for value, slope in (("alpha", "d_alpha"), ("sigma", "d_sigma"), ("alphas", "d_alphas"), ("sigmas", "d_sigmas")):
        f = getattr(process, value)
        torch.testing.assert_close(
            getattr(process, slope)(inside), (f(inside + h) - f(inside - h)) / (2 * h), rtol=1e-6, atol=1e-8
        )


def test_the_summary_is_the_geometric_mean_over_coordinates() -> None:
    process = linear([[1.3, 0.4]], counts=[1.0, 3.0])
    t = torch.tensor(0.6, dtype=F64)
    alpha = process.alphas(t)
    assert float(process.alpha(t)) == pytest.approx(float(alpha[0] ** 0.25 * alpha[1] ** 0.75), rel=1e-14)
