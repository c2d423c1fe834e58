"""FlowDiff's objective where everything is known: tests A and J of the notes, the energy, and negative controls."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gentk.losses.flowdiff import energy, gaussian_energy, misfit, probes, spread_levels

CPU = torch.device("cpu")
S = torch.tensor([[1.0, 0.7], [0.7, 1.0]], dtype=torch.float64)
H = torch.tensor([[1.0, 0.4], [0.4, 1.0]], dtype=torch.float64)
SIGMA = 0.5
LOW, HIGH = 0.01, 100.0
REACH = math.log(HIGH / LOW)


def exact(s: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The denoiser of N(0, s), differentiable in s."""

    def denoise(x: Tensor, level: Tensor) -> Tensor:
        eye = torch.eye(len(s), dtype=s.dtype)
        gain = torch.linalg.solve(s + level[:, None, None] ** 2 * eye, s.expand(len(x), -1, -1))
        return torch.einsum("bji,bj->bi", gain, x)

    return denoise


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sd", [0.3, 1.0, 2.0])
def test_the_energy_is_minus_log_p(sd: float) -> None:
    """Trap 8: dU/dx = x / sd^2 with the exact denoiser, through its Jacobian; and with levels 0.01 to 100 of ln s.

    The gradient at x is linear in x and in eps; 4096 stratified levels leave the notes' 3 %.
    """
    x = torch.tensor([[0.5 * sd], [1.5 * sd]], dtype=torch.float64)
    found = []
    for at in x:
        many = at.expand(4096, 1).clone().requires_grad_()
        s = spread_levels(4096, LOW, HIGH, gen(), CPU)
        half = torch.randn(2048, 1, generator=gen(1), dtype=torch.float64)
        u = energy(exact(torch.tensor([[sd**2]], dtype=torch.float64)), many, s, torch.cat([half, -half]), REACH)
        (g,) = torch.autograd.grad(u.mean(), many)
        found.append(float(g.sum()))
    # pairs of opposite noise have levels of their own: what is left of eps scatters by about 2 % of the larger slope
    assert found[0] == pytest.approx(0.5 / sd, rel=0.12)
    assert found[1] == pytest.approx(1.5 / sd, rel=0.05)


def test_the_energy_by_quadrature() -> None:
    """No noise at all: E over eps in closed form, the integral on a fine grid; exact to the ends of the range."""
    sd, x = 0.6, 0.9
    s = torch.logspace(math.log10(LOW), math.log10(HIGH), 20_001, dtype=torch.float64)
    root = torch.tensor([[sd**2]], dtype=torch.float64)
    there = torch.full((20_001, 1), x, dtype=torch.float64)
    plus = energy(exact(root), there, s, torch.ones_like(there), REACH)
    minus = energy(exact(root), there, s, -torch.ones_like(there), REACH)
    at_zero = [energy(exact(root), torch.zeros_like(there), s, e * torch.ones_like(there), REACH) for e in (1.0, -1.0)]
    difference = float(torch.trapezoid((plus + minus - at_zero[0] - at_zero[1]) / 2, s.log()) / REACH)
    assert difference == pytest.approx(x**2 / 2 * (1 / (sd**2 + LOW**2) - 1 / (sd**2 + HIGH**2)), rel=1e-6)


def test_without_the_jacobian_the_gradient_is_another() -> None:
    """Score distillation on N(0, 1): int 2 x / (1 + s^2) d ln s, which grows without bound as the low end goes to 0."""
    x = torch.full((4096, 1), 1.0, dtype=torch.float64, requires_grad=True)
    s = spread_levels(4096, LOW, HIGH, gen(), CPU)
    one = torch.eye(1, dtype=torch.float64)
    u = energy(exact(one), x, s, torch.zeros_like(x), REACH, through=False)
    (g,) = torch.autograd.grad(u.mean(), x)
    wanted = 2 * REACH * float((1 / (1 + s**2)).mean())
    assert float(g.sum()) == pytest.approx(wanted, rel=1e-9)
    assert float(g.sum()) > 5  # the true slope is 1


def test_levels_cover_the_range_evenly() -> None:
    s = spread_levels(1000, 0.02, 20.0, gen(), CPU)
    at = (s / 0.02).log() / math.log(1000)
    assert float(s.min()) >= 0.02
    assert float(s.max()) <= 20.0
    assert torch.equal((at.sort().values * 1000).floor().long(), torch.arange(1000))
    assert not torch.equal(s, s.sort().values)


def test_opposite_noise_takes_the_noise_out_of_the_gradient() -> None:
    """On Gaussian data a pair's gradient is the mean over eps itself, at every level; without it it is mostly noise."""
    x = torch.randn(1, 2, generator=gen(3), dtype=torch.float64).expand(64, 2)

    def slopes(s: Tensor, eps: Tensor) -> Tensor:
        at = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(energy(exact(S), at, s, eps, 1.0).sum(), at)
        return g

    s, eps = probes(x, 2, 0.01, 5.0, gen())
    assert torch.equal(s[::2], s[1::2])
    assert torch.equal(eps[::2], -eps[1::2])
    paired = slopes(s, eps).reshape(32, 2, 2).mean(1)
    mean = slopes(s, torch.zeros_like(eps)).reshape(32, 2, 2).mean(1)  # the gradient is affine in eps
    torch.testing.assert_close(paired, mean)
    s, eps = probes(x, 1, 0.01, 5.0, gen())
    assert len(set(s.tolist())) == 64
    off = slopes(s, eps) - slopes(s, torch.zeros_like(eps))
    assert float(off.square().mean()) > float(mean.square().mean())


@pytest.mark.parametrize(("low", "left"), [(0.1, 0.314), (0.02, 0.177)])
def test_the_lower_end_of_the_bound_is_noise_that_stays(low: float, left: float) -> None:
    """Along a direction in which the data do not vary, EM with the prior taken at level `low` ends at `left`, not at 0.

    c <- K^2 sigma^2 + C - K C with C = c + low^2, K = C / (C + sigma^2): with u = C / sigma^2 its fixed point is the
    root of u^3 / (1 + u)^2 = low^2 / sigma^2, the third root of the step: large for a small step, at sigma = .5.
    """
    c = 1.0
    for _ in range(3000):
        prior = c + low**2
        k = prior / (prior + SIGMA**2)
        c = k**2 * SIGMA**2 + prior - k * prior
    u = (c + low**2) / SIGMA**2
    assert u**3 / (1 + u) ** 2 == pytest.approx(low**2 / SIGMA**2, rel=1e-4)
    assert c**0.5 == pytest.approx(left, abs=5e-4)


def test_terms() -> None:
    y, hx = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])
    assert float(misfit(y, hx, 0.5)) == pytest.approx(10.0)
    normal = torch.distributions.Normal(0.3, 2.0)
    x = torch.tensor([[0.1, 1.5]])
    mean, whiten = torch.full((2,), 0.3), torch.full((2,), 0.5)
    off = gaussian_energy(x, mean, whiten) + normal.log_prob(x).sum(1)
    other = gaussian_energy(x + 1, mean, whiten) + normal.log_prob(x + 1).sum(1)
    torch.testing.assert_close(off, other)
    full = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), S)
    root = torch.linalg.inv(torch.linalg.cholesky(S)).T
    many = torch.randn(5, 2, generator=gen(), dtype=torch.float64)
    off = gaussian_energy(many, full.loc, root) + full.log_prob(many)
    torch.testing.assert_close(off, off[:1].expand(5))


class Affine:
    """x = B y + L z, its objective in closed form over y and z (no sampling): what any flow does in the mean."""

    def __init__(self) -> None:
        self.b = torch.eye(2, dtype=torch.float64).requires_grad_()
        self.l = (0.5 * torch.eye(2, dtype=torch.float64)).requires_grad_()

    def draw(self, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return y @ self.b.T + z @ self.l.T, torch.linalg.slogdet(self.l)[1].expand(len(y))


def antithetic(n: int, generator: torch.Generator, by: Tensor) -> Tensor:
    """n draws whose first two moments are exactly 0 and 1, times `by`: averages of quadratics are then exact."""
    x = torch.randn(n // 2, 4, generator=generator, dtype=torch.float64)
    x = torch.cat([x, -x])
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / n)).T
    return x @ by.T


def draws(n: int = 256) -> tuple[Tensor, Tensor]:
    """y of its own law and z, jointly with exact moments."""
    root = torch.linalg.cholesky(H @ S @ H.T + SIGMA**2 * torch.eye(2, dtype=torch.float64))
    both = antithetic(n, gen(5), torch.block_diag(root, torch.eye(2, dtype=torch.float64)))
    return both[:, :2], both[:, 2:]


def loss(flow: Affine, prior: Tensor, *, entropy: float = 1.0) -> Tensor:
    """The terms of the objective, the prior's energy by the quadrature of `energy` over levels and its exact eps."""
    y, z = draws()
    x, logdet = flow.draw(y, z)
    quadratic = 0.5 * torch.einsum("bi,ij,bj->b", x, torch.linalg.inv(prior), x)
    normaliser = 0.5 * torch.linalg.slogdet(prior)[1]
    return (misfit(y, x @ H.T, SIGMA) + quadratic + normaliser - entropy * logdet).mean()


def minimise(parameters: list[Tensor], of: Callable[[], Tensor], steps: int) -> None:
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=steps, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = of()
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[arg-type]


def test_a_the_flow_becomes_the_posterior() -> None:
    """Test A: B within .001 and L L^T within .0005 of the exact posterior."""
    flow = Affine()
    minimise([flow.b, flow.l], lambda: loss(flow, S), 300)
    k = torch.tensor([[0.5836, 0.0808], [0.0808, 0.5836]], dtype=torch.float64)
    covariance = torch.tensor([[0.1641, -0.0454], [-0.0454, 0.1641]], dtype=torch.float64)
    torch.testing.assert_close(flow.b.detach(), k, rtol=0, atol=1e-3)
    torch.testing.assert_close((flow.l @ flow.l.T).detach(), covariance, rtol=0, atol=5e-4)


def test_a_without_entropy_it_collapses() -> None:
    """Trap 1: the minimum without the log-determinant is a point (the notes' .003 is on its way to 0)."""
    flow = Affine()
    minimise([flow.b, flow.l], lambda: loss(flow, S, entropy=0.0), 300)
    assert float((flow.l @ flow.l.T).detach().abs().max()) < 0.003


def joint(entropy: float = 1.0) -> Tensor:
    """The prior's covariance, learned with the flow from measurements alone."""
    flow, root = Affine(), torch.eye(2, dtype=torch.float64).requires_grad_()
    floor = 1e-6 * torch.eye(2, dtype=torch.float64)
    minimise([flow.b, flow.l, root], lambda: loss(flow, root.tril() @ root.tril().T + floor, entropy=entropy), 2000)
    return (root.tril() @ root.tril().T).detach()


def test_j_the_prior_is_learned_from_measurements_alone() -> None:
    """Test J: within .02 of [[1, .7], [.7, 1]]; the moments of y are exact here, so is the answer."""
    torch.testing.assert_close(joint(), S, rtol=0, atol=0.02)


def test_j_without_entropy_the_prior_is_singular() -> None:
    """Trap 1, jointly: the smaller eigenvalue goes to nothing (truth: .3)."""
    found = torch.linalg.eigvalsh(joint(entropy=0.0))
    assert float(found[0]) < 0.1


def test_the_priors_part_is_score_matching_on_draws() -> None:
    """The objective's gradient in the denoiser is that of denoising score matching on x with weight 1 / s^2 in ln s."""
    root = torch.tensor([[0.8, 0.0], [0.3, 0.9]], dtype=torch.float64, requires_grad=True)
    x = torch.randn(64, 2, generator=gen(), dtype=torch.float64)
    s, eps = spread_levels(64, 0.05, 5.0, gen(1), CPU), torch.randn(64, 2, generator=gen(2), dtype=torch.float64)
    (a,) = torch.autograd.grad(energy(exact(root @ root.T), x, s, eps, math.log(100)).mean(), root)
    x0 = exact(root @ root.T)(x + s[:, None] * eps, s)
    (b,) = torch.autograd.grad(((x0 - x).square().sum(1) / s**2).mean() * math.log(100), root)
    torch.testing.assert_close(a, b)


def test_a_sigma_twice_too_small_overfits() -> None:
    """Trap 7: the data term is 1 / (2 sigma^2) per pixel; sigma must be in the data's own units."""
    y, hx = torch.ones(1, 4), torch.zeros(1, 4)
    assert float(misfit(y, hx, 0.25)) == pytest.approx(4 * float(misfit(y, hx, 0.5)))
