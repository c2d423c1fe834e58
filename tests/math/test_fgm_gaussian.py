"""Flow generator matching by Monte Carlo on a Gaussian in 8 dimensions, against closed forms.

x0 = mu + exp(l) z with mu = 0, l = 0.1; target N(m, 0.6^2 I), m = linspace(-1, 1, 8). On the straight path
v_theta - u = (D_q - D_theta) / t is affine in x_t. With s = t / (1 - t), a = exp(2 l) + s^2, b = 0.36 + s^2 and
g = mu - m, E|v_theta - u|^2 is s^4 / t^2 times the Fisher divergence d a (1/b - 1/a)^2 + |g|^2 / b^2 of the laws of
x_t / (1 - t), and so are its gradients:

    full      d/dmu = 2 g / b^2      d/da = d (1/b^2 - 1/a^2)
    frozen    d/dmu = 2 g / (a b)    d/da = 2 d (1/b - 1/a) / a        d/dl = 2 exp(2 l) d/da

Accepted: relative error of every gradient below 1 %, and |z| < 4 on every coordinate, z from the spread over 40 batches
of 4096. F1 to F3 are the mistakes that flow generator matching invites: l, a scale, shows them.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gentk.losses.divergence import fgm, weight

DIM, SCALE, SPREAD = 8, 0.1, 0.6
BATCHES, BATCH = 40, 4096
M = torch.linspace(-1, 1, DIM, dtype=torch.float64)
TIMES = (0.25, 0.5, 0.8)


def closed_form(path: str, t: float) -> Tensor:
    """(d/dmu (8), d/dl)."""
    s = t / (1 - t)
    a, b = math.exp(2 * SCALE) + s**2, SPREAD**2 + s**2
    mean, da = {
        "full": (-2 * M / b**2, DIM * (1 / b**2 - 1 / a**2)),
        "frozen": (-2 * M / (a * b), 2 * DIM * (1 / b - 1 / a) / a),
    }[path]
    row = torch.cat([mean, torch.tensor([2 * math.exp(2 * SCALE) * da], dtype=torch.float64)])
    return s**4 / t**2 * row


def velocity(x: Tensor, t: float, mean: Tensor, variance: Tensor | float) -> Tensor:
    """E[x1 - x0 | x_t = x] for x0 ~ N(mean, variance I)."""
    total = (1 - t) ** 2 * variance + t**2
    return (t - (1 - t) * variance) / total * (x - (1 - t) * mean) - mean


def gradients(t: float, loss, *, start: tuple[Tensor, float] | None = None, reuse: bool = False) -> Tensor:
    """The loss's gradient in (mu, l), batch by batch: (40, 9). `reuse` is F2: x1 = z, and the flow fitted to that."""
    gen, rows = torch.Generator().manual_seed(1), []
    first, log_first = start or (torch.zeros(DIM, dtype=torch.float64), SCALE)
    for _ in range(BATCHES):
        z, fresh = torch.randn(2, BATCH, DIM, generator=gen, dtype=torch.float64)
        x1 = z if reuse else fresh
        mu, log = first.clone().requires_grad_(), torch.tensor(log_first, dtype=torch.float64, requires_grad=True)
        x0 = mu + log.exp() * z
        x = (1 - t) * x0 + t * x1
        u = velocity(x, t, M, SPREAD**2)
        mean, std = mu.detach(), log.exp().detach()  # parameters frozen, gradient through x
        coupled = (1 - std) / ((1 - t) * std + t) * (x - (1 - t) * mean) - mean
        v = coupled if reuse else velocity(x, t, mean, std**2)
        total = loss(x0, x1, x, u, v).mean()
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(total, (mu, log))]))
    return torch.stack(rows)


def core(t: float, path: str):
    """What the core computes: denoisers x - t v, the objective, the velocity weight."""
    s = torch.tensor(t / (1 - t), dtype=torch.float64)

    def loss(x0: Tensor, x1: Tensor, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        dq, dp = x - t * u, x - t * v
        return weight("velocity", s, x0, dq) * fgm(x0, dq, dp, path=path)

    return loss


def z(rows: Tensor, want: Tensor | float = 0.0) -> Tensor:
    return (rows.mean(0) - want) / (rows.std(0) / math.sqrt(len(rows)))


def relative(rows: Tensor, want: Tensor) -> float:
    """Largest error, of the mean's gradient as a vector and of the scale's."""
    gap = rows.mean(0) - want
    return max((gap[:DIM].norm() / want[:DIM].norm()).item(), (gap[DIM] / want[DIM]).abs().item())


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("path", ["frozen", "full"])
def test_the_losses_have_the_closed_form_gradient(path: str, t: float) -> None:
    rows, want = gradients(t, core(t, path)), closed_form(path, t)
    assert relative(rows, want) < 0.01
    assert z(rows, want).abs().max() < 4


TRAPS = {
    "F1 target held constant": lambda x0, x1, x, u, v: (2 * (u - v) * (v - (x1 - x0).detach())).sum(1),
    "F3 both under no_grad": lambda x0, x1, x, u, v: (2 * (u - v).detach() * (v.detach() - (x1 - x0))).sum(1),
    "F4 sign": lambda x0, x1, x, u, v: (2 * (u - v) * (v + (x1 - x0))).sum(1),
}


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("trap", TRAPS)
def test_mistakes_fail_the_same_test(trap: str, t: float) -> None:
    rows = gradients(t, TRAPS[trap])
    for path in ("frozen", "full"):
        want = closed_form(path, t)
        assert relative(rows, want) > 0.05
        assert z(rows, want)[DIM].abs() > 20


@pytest.mark.parametrize("t", TIMES)
def test_at_the_optimum_there_is_no_gradient_at_all(t: float) -> None:
    """u - v vanishes at every sample, to rounding of the same formula: nothing is left to average out.

    Under F2 the fitted flow is another one there: E|u - v|^2 is not 0, and the scale is pushed away.
    """
    at = (M, math.log(SPREAD))
    for path in ("frozen", "full"):
        assert gradients(t, core(t, path), start=at).abs().max() < 1e-12
    assert z(gradients(t, core(t, "frozen"), start=at, reuse=True))[DIM].abs() > 20
