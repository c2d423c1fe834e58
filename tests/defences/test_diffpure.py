"""DiffPure: the coefficients of its SDE, the noise levels of its times, and its kinship with Purify++ at lambda = 1."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gentk.defences.diffpure import DiffPure
from gentk.defences.purify_pp import PurifyPP
from gentk.errors import RecipeError
from tests.defences.testbed import density, digits, noise


@pytest.mark.parametrize(
    ("t", "level"),
    [(0.036, 0.129), (0.05, 0.174), (0.075, 0.256), (0.1, 0.340), (0.125, 0.428), (0.15, 0.519), (0.2, 0.72)],
)
def test_the_levels_of_its_times(t: float, level: float) -> None:
    """Trap 2: t* is a time and not a level. The table of the method notes, and sigma^2 / alpha^2 = e^B - 1."""
    found = DiffPure(density()).level(t)
    assert found == pytest.approx(level, abs=0.006)
    assert found == pytest.approx(math.sqrt(math.expm1(0.1 * t + 0.5 * 19.9 * t * t)), rel=1e-12)


def test_one_step_by_hand() -> None:
    z, draws = 2 * digits()[2][:3].double() - 1, noise(3)
    found = DiffPure(density(), t_star=0.1, steps=1)(z, draws)
    b = 0.1 * 0.1 + 0.5 * 19.9 * 0.01
    alpha, sigma, beta, h = math.exp(-b / 2), math.sqrt(-math.expm1(-b)), 0.1 + 19.9 * 0.1, 0.1 - 1e-5
    y = alpha * z + sigma * draws.normal("0.start", z)
    score = (alpha * density()(y / alpha, sigma / alpha) - y) / sigma**2
    by_hand = y + h * (0.5 * beta * y + beta * score) + math.sqrt(beta * h) * draws.normal("0.0", z)
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-12)


class Gauss:
    """The exact denoiser of N(0, v)."""

    v = 0.7

    def __call__(self, z: Tensor, t: float | Tensor) -> Tensor:
        return z * self.v / (self.v + t**2)


def exact(t_star: float, steps: int, score: float = 1.0) -> tuple[float, float]:
    """Variance of the answer and its correlation with the image, for Gaussian data: each step is linear, so both are
    known for the very steps that are taken. `score` scales the score, for a known mistake."""

    def at(t: float) -> tuple[float, float, float]:
        b = 0.1 * t + 0.5 * 19.9 * t * t
        return math.exp(-b), -math.expm1(-b), 0.1 + 19.9 * t  # alpha^2, sigma^2, beta

    h = (t_star - 1e-5) / steps
    square, sigma, _ = at(t_star)
    kept, var = math.sqrt(square), square * Gauss.v + sigma
    for i in range(steps):
        square, sigma, beta = at(t_star - i * h)
        factor = 1 + h * beta * (0.5 - score / (Gauss.v * square + sigma))
        kept, var = kept * factor, factor**2 * var + h * beta
    return var, kept * math.sqrt(Gauss.v / var)


def test_the_law_of_gaussian_data_is_kept() -> None:
    """Variance in, variance out: that of the steps to five standard errors, and theirs is the data's to first order
    in the step; with the ODE's drift it is another one."""
    n = 40_000
    x = math.sqrt(Gauss.v) * torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = DiffPure(Gauss(), t_star=0.3, steps=200)(x, noise(n))
    assert abs(float(out.var()) / exact(0.3, 200)[0] - 1) < 5 * math.sqrt(2 / n)
    biases = [exact(0.3, steps)[0] / Gauss.v - 1 for steps in (200, 400, 800)]
    assert biases[0] / biases[1] == pytest.approx(2, abs=0.1)
    assert biases[1] / biases[2] == pytest.approx(2, abs=0.05)

    def half(z: Tensor, t: float | Tensor) -> Tensor:
        """The known mistake, the ODE's half score in the SDE: D - z halved."""
        return 0.5 * (z + Gauss()(z, t))

    wrong = DiffPure(half, t_star=0.3, steps=200)(x, noise(n))
    assert abs(float(wrong.var()) / exact(0.3, 200)[0] - 1) > 10 * math.sqrt(2 / n)


def test_it_is_the_reverse_sde_of_lambda_one() -> None:
    """The same law, the same correlation with the image, whichever of the two integrates it (Gaussian data)."""
    n, level = 40_000, DiffPure(Gauss(), t_star=0.3).level(0.3)
    x = math.sqrt(Gauss.v) * torch.randn(n, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    answers = [
        DiffPure(Gauss(), t_star=0.3, steps=200)(x, noise(n)),
        PurifyPP(Gauss(), level, 200, solver="exponential", langevin=1.0)(x, noise(n)),
        PurifyPP(Gauss(), level, 200, solver="exponential", langevin=0.0)(x, noise(n)),
    ]
    kept = [float(torch.corrcoef(torch.cat([x, out], 1).T)[0, 1]) for out in answers]
    # x0' and x0 are independent given x_t: corr = v / (v + t^2); its root for the ODE, which forgets nothing of x_t.
    limit = Gauss.v / (Gauss.v + level**2)
    error = (1 - limit**2) / math.sqrt(n)
    biased = exact(0.3, 200)[1]
    assert abs(kept[0] - biased) < 4 * error
    assert abs(kept[1] - limit) < 4 * error + abs(biased - limit)  # both are of first order, with as many steps
    assert abs(kept[2] - math.sqrt(limit)) < 4 * error
    assert kept[2] - kept[0] > 8 * error  # the control


def test_settings() -> None:
    with pytest.raises(RecipeError, match="t_end"):
        DiffPure(density(), t_star=1e-6)
    assert DiffPure(density()).nfe == 100
    z, draws = 2 * digits()[2][:2].double() - 1, noise(2)
    fewer = DiffPure(density(), steps=20)(z, draws)
    torch.testing.assert_close(DiffPure(density()).surrogate(z, draws), fewer, rtol=0, atol=0)
