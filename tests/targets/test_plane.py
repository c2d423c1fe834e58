"""Densities against quadrature and finite differences; samplers against moments with their standard errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gentk import targets
from gentk.errors import RecipeError

F64 = torch.float64
N = 100_000
SCORED = [name for name in targets.names() if targets.find(name).log_prob is not None]

# Per density: the box outside which less than 1e-10 of the mass lies, and a step. The trapezoidal rule on a Gaussian of
# deviation s errs by about 2 exp(-2 pi^2 s^2 / h^2): below 1e-8 for h = s, and much below for the steps here.
GRIDS = {
    "gaussian": ((-7.0, 8.0), (-4.5, 4.0), 0.1),
    "ring8": ((-2.3, 2.3), (-2.3, 2.3), 0.04),
    "grid25": ((-1.9, 1.9), (-1.9, 1.9), 0.03),
    "rings": ((-2.5, 2.5), (-2.5, 2.5), 0.02),
    "pinwheel": ((-4.0, 4.0), (-4.0, 4.0), 0.012),
    "banana": ((-7.0, 7.0), (-3.0, 32.0), 0.1),
}


def quadrature(name: str) -> tuple[Tensor, Tensor]:
    """Nodes (n, 2) and probability masses (n,) in float64."""
    if name == "funnel":  # its width runs from e^-4 to e^4: x2 = sinh u spreads the nodes evenly over the scales
        a, u = torch.arange(-8, 8, 0.05, dtype=F64), torch.arange(-10, 10, 0.01, dtype=F64)
        x, weight = torch.cartesian_prod(a, u.sinh()), 0.05 * 0.01 * u.cosh().repeat(len(a))
    else:
        (left, right), (low, high), h = GRIDS[name]
        x = torch.cartesian_prod(torch.arange(left, right, h, dtype=F64), torch.arange(low, high, h, dtype=F64))
        weight = torch.full((len(x),), h * h, dtype=F64)
    log_prob = targets.find(name).log_prob
    assert log_prob is not None
    return x, weight * log_prob(x).exp()


def features(x: Tensor) -> Tensor:
    """Moments and waves (n, 15): the waves see displaced or lost modes that the moments do not."""
    a, b = x.unbind(-1)
    phases = [k * a + m * b for k, m in ((2, 0), (0, 2), (3, 4), (-4, 3))]
    # The straight waves vanish under the pinwheel's five-fold symmetry; this one follows its arms.
    phases.append(5 * (torch.atan2(b, a) - 1.5 * torch.hypot(a, b)))
    return torch.stack([a, b, a * a, a * b, b * b, *map(torch.cos, phases), *map(torch.sin, phases)], -1)


def deviations(name: str, samples: Tensor) -> Tensor:
    """The features' sample means minus their expectations, in standard errors that the quadrature gives too."""
    x, mass = quadrature(name)
    f = features(x)
    mean = mass @ f
    error = ((mass @ f.square() - mean**2) / len(samples)).sqrt()
    return (features(samples.double()).mean(0) - mean) / error


def draw(name: str, n: int = N) -> Tensor:
    return targets.find(name).sample(n, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SCORED)
def test_the_density_integrates_to_one(name: str) -> None:
    assert quadrature(name)[1].sum().item() == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("name", SCORED)
def test_samples_follow_the_density(name: str) -> None:
    samples = draw(name)
    assert samples.shape == (N, 2)
    assert samples.dtype == torch.float32
    # 15 features of 7 targets beyond 5 standard errors: 6e-5 for a right sampler.
    assert deviations(name, samples).abs().max() < 5
    assert deviations(name, samples * 1.05).abs().max() > 10, "the control: five per cent too wide"


@pytest.mark.parametrize("name", SCORED)
def test_the_score_is_the_gradient_of_the_log_density(name: str) -> None:
    target, x, h = targets.find(name), draw(name, 200).double(), 1e-6
    assert target.log_prob is not None
    steps = h * torch.eye(2, dtype=F64)
    numeric = torch.stack([(target.log_prob(x + s) - target.log_prob(x - s)) / (2 * h) for s in steps], -1)
    with torch.no_grad():
        score = target.score(x)
    assert not score.requires_grad
    assert score.dtype == F64
    # Truncation h^2 |f'''| / 6 with third derivatives up to s^-3 = 1e5, rounding 1e-16 |f| / h: both below 1e-6.
    torch.testing.assert_close(score, numeric, rtol=1e-6, atol=1e-5)
    assert target.score(x.float()).dtype == torch.float32
    torch.testing.assert_close(target.log_prob(x.reshape(2, 100, 2)), target.log_prob(x).reshape(2, 100))


def test_samples_depend_on_the_generator_alone() -> None:
    for name in targets.names():
        assert torch.equal(draw(name, 100), draw(name, 100)), name
        assert draw(name, 0).shape == (0, 2), name


def test_checkerboard_fills_its_dark_squares_evenly() -> None:
    cell = (draw("checkerboard") + 2).floor().long()
    assert cell.min() == 0
    assert cell.max() == 3
    assert ((cell.sum(-1) % 2) == 0).all()
    counts = (4 * cell[:, 1] + cell[:, 0]).bincount(minlength=16)
    error = math.sqrt(N * (1 / 8) * (7 / 8))
    assert (counts > 0).sum() == 8
    assert ((counts[counts > 0] - N / 8).abs() < 5 * error).all()
    inside = draw("checkerboard").double().frac().abs()
    assert abs(inside.mean().item() - 0.5) < 5 / math.sqrt(12 * 2 * N)


def test_two_moons_has_the_moments_of_two_half_circles() -> None:
    a, b = draw("two-moons").double().unbind(-1)
    noise = 0.08**2
    expected = {
        "x": (a, 0.0),
        "y": (b, 0.0),
        "xx": (a * a, 0.5 + 0.25 + noise),
        "yy": (b * b, 0.5 - 0.5 * (2 / math.pi) + 0.0625 + noise),
        "xy": (a * b, -0.5 * (2 / math.pi) + 0.125),
    }
    for name, (values, mean) in expected.items():
        assert abs(values.mean().item() - mean) < 5 * values.std().item() / math.sqrt(N), name


def test_spiral_keeps_to_its_line() -> None:
    x = draw("spiral", 5000).double()
    along = torch.linspace(0, 1, 2000, dtype=F64)
    line = torch.stack((2 * along * (3 * math.pi * along).cos(), 2 * along * (3 * math.pi * along).sin()), -1)
    assert torch.cdist(x, line).amin(1).max() < 6 * 0.06
    square = x.square().sum(-1)
    # r = 2 sqrt(u) with u uniform, so E r^2 = 2, and two coordinates of noise.
    assert abs(square.mean().item() - 2 - 2 * 0.06**2) < 5 * square.std().item() / math.sqrt(len(x))


def test_faults_say_what_is_there() -> None:
    with pytest.raises(RecipeError, match="unknown target `rng8`; did you mean `ring8`"):
        targets.find("rng8")
    with pytest.raises(RecipeError, match="`spiral` has exact samples but no score") as caught:
        targets.find("spiral").score(torch.zeros(1, 2))
    assert "ring8" in caught.value.hint
    assert "spiral" not in caught.value.hint
