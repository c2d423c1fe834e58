"""Score implicit matching by exact quadrature: the loss's gradient IS the divergence's, to rounding.

Generator x0 = th0 + th1 z + th2 tanh(2 z) on 24 Gauss-Hermite atoms of z, so that its noised law is a finite mixture
and every field a closed form; teacher a Gaussian mixture. Two routes to d/dtheta that share nothing but the fields:

  loss route        E over (z, eps) of `sim(...)`, differentiated through x0 and x_t with the fake denoiser frozen
  divergence route  the integral over x of p(x) d(D_q - D_theta)(x), differentiated through D_theta (full: and p)

The integrals use the trapezoid rule, whose error for analytic, Gaussian-tailed integrands falls exponentially.
In one dimension y / |y| is a sign (trap T7), so the norm is tested in two, where delta never vanishes.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gentk.losses import distances
from gentk.losses.distances import Distance
from gentk.losses.divergence import Path, diff_instruct, sim

TOLERANCE = 1e-8  # relative to the largest component
WIDE = 1e-2  # every broken variant misses by more than this, a million tolerances
LEVELS = (0.3, 1.0, 3.0)
THETA = torch.tensor([0.3, 0.8, 0.25], dtype=torch.float64)


def hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E over a standard normal."""
    z, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(z), torch.from_numpy(w / math.sqrt(2 * math.pi))


class Line:
    """The one-dimensional problem."""

    z, w = hermite(24)
    theta = THETA
    half = 10.0  # of the trapezoid grid, in standard deviations
    nodes = 1001
    c = 0.05  # the integrand's poles are about c away from the real axis, so c bounds the grid's step

    def atoms(self, th: Tensor) -> Tensor:
        """x0 per latent atom: (K, d)."""
        return (th[0] + th[1] * self.z + th[2] * torch.tanh(2 * self.z))[:, None]

    def teacher(self, x: Tensor, s: float) -> Tensor:
        """E_q[x0 | x] of 0.4 N(-1.2, 0.2) + 0.6 N(0.9, 0.35)."""
        return self._teacher(x, s)[1]

    def log_q(self, x: Tensor, s: float) -> Tensor:
        return self._teacher(x, s)[0]

    def _teacher(self, x: Tensor, s: float) -> tuple[Tensor, Tensor]:
        w, m, v = torch.tensor([[0.4, 0.6], [-1.2, 0.9], [0.2, 0.35]], dtype=torch.float64)
        log = w.log() - 0.5 * (2 * math.pi * (v + s**2)).log() - 0.5 * (x - m) ** 2 / (v + s**2)
        each = m + v / (v + s**2) * (x - m)
        return log.logsumexp(1), (log.softmax(1) * each).sum(1, keepdim=True)


class Plane(Line):
    """Two dimensions; the second coordinate of the target is 1.5, the generator's stays below 0.6: delta_2 > 0.9."""

    z, w = hermite(5)
    theta = torch.tensor([0.3, 0.8, 0.25, 0.1, 0.4], dtype=torch.float64)
    half = 8.5
    nodes = 121
    c = 0.5

    def atoms(self, th: Tensor) -> Tensor:
        first = th[0] + th[1] * self.z + th[2] * torch.tanh(2 * self.z)
        return torch.stack([first, th[3] + th[4] * torch.tanh(self.z)], 1)

    def teacher(self, x: Tensor, s: float) -> Tensor:
        first = super().teacher(x[:, :1], s)
        return torch.cat([first, torch.full_like(first, 1.5)], 1)


def log_components(problem: Line, x: Tensor, th: Tensor, s: float) -> Tensor:
    """ln w_k N(x; x0_k, s^2 I): (M, K)."""
    a = problem.atoms(th)
    square = (x[:, None] - a).square().sum(2)
    return problem.w.log() - 0.5 * square / s**2 - 0.5 * a.shape[1] * math.log(2 * math.pi * s**2)


def fake(problem: Line, x: Tensor, th: Tensor, s: float) -> Tensor:
    """E_theta[x0 | x]."""
    return log_components(problem, x, th, s).softmax(1) @ problem.atoms(th)


def axes(problem: Line, lo: Tensor, hi: Tensor, step: float) -> tuple[Tensor, float]:
    """A rectangular grid (M, d) over [lo, hi] and its cell."""
    each = [torch.arange(a, b + step, step, dtype=torch.float64) for a, b in zip(lo.tolist(), hi.tolist(), strict=True)]
    return torch.cartesian_prod(*each).reshape(-1, len(each)), step ** len(each)


def integrate_loss(problem: Line, s: float, loss) -> Tensor:
    """d/dtheta E loss(x0, x_t, D_q(x_t), D_psi(x_t)), psi = theta frozen: what the product computes."""
    th = problem.theta.clone().requires_grad_()
    x0 = problem.atoms(th)
    d = x0.shape[1]
    box = torch.full((d,), problem.half, dtype=torch.float64)
    eps, cell = axes(problem, -box, box, 2 * problem.half / (problem.nodes - 1))
    mass = cell * torch.exp(-0.5 * eps.square().sum(1)) / (2 * math.pi) ** (d / 2)
    total = (problem.w.sum() * 0).to(th)
    for k, weight in enumerate(problem.w):  # atom by atom: the plane's grids are large
        clean = x0[k].expand(len(eps), d)
        x = clean + s * eps
        each = loss(clean, x, problem.teacher(x, s), fake(problem, x, th.detach(), s))
        total = total + weight * (mass * each).sum()
    return torch.autograd.grad(total, th)[0]


def integrate_divergence(problem: Line, s: float, d, path: str) -> Tensor:
    """d/dtheta of the integral of p(x) d(x, theta), p frozen or not."""
    th = problem.theta.clone().requires_grad_()
    a = problem.atoms(problem.theta)
    reach = problem.half * s
    x, cell = axes(problem, a.amin(0) - reach, a.amax(0) + reach, 2 * reach / (problem.nodes - 1))
    p = log_components(problem, x, th if path == "full" else th.detach(), s).logsumexp(1).exp()
    return torch.autograd.grad((cell * p * d(x, th)).sum(), th)[0]


def reference(problem: Line, s: float, distance: Distance, path: Path) -> Tensor:
    """The gradient of E d(D_q - D_theta), in denoiser units; half of it for l2, as `sim` states."""

    def d(x: Tensor, th: Tensor) -> Tensor:
        return distances.value(problem.teacher(x, s) - fake(problem, x, th, s), distance, problem.c)

    return integrate_divergence(problem, s, d, path) * (0.5 if distance == "l2" else 1)


def error(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def estimator(distance: Distance, path: Path, c: float = Line.c):
    return lambda x0, x, dq, dp: sim(x0, dq, dp, distance=distance, c=c, path=path)


CASES = [(Line(), name) for name in ("l2", "pseudo-huber", "smooth-l1")]
CASES += [(Plane(), name) for name in ("l2", "pseudo-huber", "l2-norm", "smooth-l1")]


@pytest.mark.parametrize("s", LEVELS)
@pytest.mark.parametrize("path", ["frozen", "full"])
@pytest.mark.parametrize(("problem", "distance"), CASES, ids=lambda p: p if isinstance(p, str) else type(p).__name__)
def test_sim_is_the_gradient_of_its_divergence(problem, distance, path, s):
    got = integrate_loss(problem, s, estimator(distance, path, problem.c))
    want = reference(problem, s, distance, path)
    assert error(got, want) < TOLERANCE
    other = reference(problem, s, distance, "full" if path == "frozen" else "frozen")
    assert error(got, other) > 1e-4  # the two paths are different gradients, and are told apart


@pytest.mark.parametrize("s", LEVELS)
@pytest.mark.parametrize("path", ["frozen", "full"])
def test_weight_two_over_s4_is_the_fisher_divergence(path, s):
    """The scores here are autograd's of the log-densities: no denoiser enters."""
    line = Line()

    def fisher(x: Tensor, th: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        log_p = log_components(line, x, th, s).logsumexp(1)
        gap = torch.autograd.grad((log_p - line.log_q(x, s)).sum(), x, create_graph=True)[0]
        return gap.square().sum(1)

    got = 2 / s**4 * integrate_loss(line, s, estimator("l2", path))
    assert error(got, integrate_divergence(line, s, fisher, path)) < TOLERANCE


@pytest.mark.parametrize("s", LEVELS)
def test_diff_instruct_is_the_gradient_of_the_kl(s):
    line = Line()

    def log_ratio(x: Tensor, th: Tensor) -> Tensor:
        return log_components(line, x, th, s).logsumexp(1) - line.log_q(x, s)

    kl = integrate_divergence(line, s, log_ratio, "full")
    got = integrate_loss(line, s, lambda x0, x, dq, dp: diff_instruct(x0, dq, dp)) / s**2
    assert error(got, kl) < TOLERANCE
    attached = integrate_loss(line, s, lambda x0, x, dq, dp: ((dp - dq) * x0).sum(1)) / s**2
    assert error(attached, kl) > WIDE


def test_the_divergence_route_agrees_with_finite_differences():
    """The reference itself, checked by central differences of the plain integral: error of order h^2 = 1e-8."""
    line, s, h = Line(), 1.0, 1e-4
    x, cell = axes(line, torch.tensor([-25.0]), torch.tensor([25.0]), 0.01)

    def divergence(th: Tensor, sampling: Tensor) -> Tensor:
        p = log_components(line, x, sampling, s).logsumexp(1).exp()
        return (cell * p * distances.value(line.teacher(x, s) - fake(line, x, th, s), "pseudo-huber", line.c)).sum()

    for path in ("frozen", "full"):
        want = []
        for step in h * torch.eye(3, dtype=torch.float64):
            up, down = THETA + step, THETA - step
            law = (THETA, THETA) if path == "frozen" else (up, down)
            want.append((divergence(up, law[0]) - divergence(down, law[1])) / (2 * h))
        assert error(reference(line, s, "pseudo-huber", path), torch.stack(want)) < 1e-6


def severed(field: Tensor, x: Tensor) -> Tensor:
    """The field as `no_grad` would leave it, but with a graph, so that `sim`'s own check lets it pass."""
    return field.detach() + 0 * x


BROKEN = {
    "T1 teacher under no_grad": ("l2", lambda x0, x, dq, dp: estimator("l2", "frozen")(x0, x, severed(dq, x), dp)),
    "T2 fake under no_grad": ("l2", lambda x0, x, dq, dp: estimator("l2", "frozen")(x0, x, dq, severed(dp, x))),
    "T3 both under no_grad": (
        "l2",
        lambda x0, x, dq, dp: estimator("l2", "frozen")(x0, x, severed(dq, x), severed(dp, x)),
    ),
    "T4 x0 detached": ("l2", lambda x0, x, dq, dp: estimator("l2", "frozen")(x0.detach(), x, dq, dp)),
    "T4 sign": ("l2", lambda x0, x, dq, dp: -estimator("l2", "frozen")(x0, x, dq, dp)),
    "T4 roles swapped": ("l2", lambda x0, x, dq, dp: estimator("l2", "frozen")(x0, x, dp, dq)),
    "T5 delta detached": ("l2", lambda x0, x, dq, dp: ((dq - dp).detach() * (dp - x0)).sum(1)),
    "T5 delta detached, pseudo-Huber": (
        "pseudo-huber",
        lambda x0, x, dq, dp: (distances.slope((dq - dp).detach(), "pseudo-huber", Line.c) * (dp - x0)).sum(1),
    ),
    "T6 normaliser detached": (
        "pseudo-huber",
        lambda x0, x, dq, dp: (
            (dq - dp) / ((dq - dp).square().sum(1, keepdim=True) + Line.c**2).sqrt().detach() * (dp - x0)
        ).sum(1),
    ),
    "T7 sign": ("smooth-l1", lambda x0, x, dq, dp: ((dq - dp).sign() * (dp - x0)).sum(1)),
}


@pytest.mark.parametrize("s", LEVELS)
@pytest.mark.parametrize("trap", BROKEN)
def test_broken_variants_fail_the_same_equality(trap, s):
    distance, loss = BROKEN[trap]
    line = Line()
    want = reference(line, s, distance, "frozen")
    assert error(integrate_loss(line, s, estimator(distance, "frozen")), want) < TOLERANCE
    got = integrate_loss(line, s, loss)
    assert error(got, want) > WIDE
    if trap[:2] in ("T5", "T6"):  # the mean's gradient alone would not have told
        assert abs(got[0] - want[0]) < abs(got[1] - want[1])


def test_both_under_no_grad_is_another_method():
    """T3: SIM-L2 without the graphs is 2 / s^2 times the KL gradient, and so converges unnoticed."""
    line, s = Line(), 0.7
    t3 = integrate_loss(line, s, BROKEN["T3 both under no_grad"][1])
    kl = integrate_loss(line, s, lambda x0, x, dq, dp: diff_instruct(x0, dq, dp))
    assert error(t3, kl) < 1e-12
