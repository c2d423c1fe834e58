"""Purify++: orders, marginals of every lambda, agreement with the sampling solvers, and the mistakes that are made."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gentk.attacks.victim import Tape
from gentk.defences.noise import Noise
from gentk.defences.purify_pp import Churn, PurifyPP
from gentk.errors import RecipeError
from gentk.processes.schedules import VE
from gentk.solvers import ancestral, edm_stochastic, euler, heun
from tests.defences.testbed import density, digits, noise

T = torch.float64


def images(n: int) -> Tensor:
    """Held-out digits in [-1, 1], float64."""
    return 2 * digits()[2][:n].double() - 1


def ode(steps: int, solver: str, **own) -> PurifyPP:
    return PurifyPP(density(), 0.5, steps, t_min=0.02, solver=solver, **own)


@pytest.mark.parametrize(
    ("solver", "corrector", "order"),
    [("euler", False, 1), ("exponential", False, 1), ("heun", False, 2), ("exponential", True, 2)],
)
def test_orders(solver: str, corrector: bool, order: int) -> None:
    """Half the step, 1/2 or 1/4 of the error against a fine solution from the same noise (method notes, 3.2)."""
    z, draws = images(32), noise(32)
    true = ode(513, "heun")(z, draws)
    errors = [(ode(n, solver, corrector=corrector)(z, draws) - true).flatten(1).norm(dim=1).median() for n in (17, 33)]
    ratio = float(errors[0] / errors[1])
    assert abs(ratio - 2**order) < {1: 0.2, 2: 0.6}[order]


def test_errors_of_the_reference_table() -> None:
    """0.145 at 8 NFE for Euler's 9 levels, 0.0245 at 16 for Heun's: medians over digits.

    Theirs are of other digits and noise: within three standard errors of the difference of two such medians, of the
    errors' logarithms. The table's grids end at t_min; ours goes on to 0, so the last call is left out: NFE + 1.
    """
    z, draws = images(64), noise(64)
    true = ode(257, "heun")(z, draws)
    for steps, solver, nfe, error in ((9, "euler", 9, 0.145), (9, "heun", 17, 0.0245), (17, "heun", 33, 0.00647)):
        purifier = ode(steps, solver)
        found = (purifier(z, draws) - true).flatten(1).norm(dim=1).log()
        assert purifier.nfe == nfe
        low, high = torch.quantile(found, torch.tensor([0.25, 0.75], dtype=T)).tolist()
        spread = 1.2533 * (high - low) / 1.349 / math.sqrt(len(found))  # of a median, by the quartiles
        off = float(found.median()) - math.log(error)
        assert abs(off) < 3 * math.sqrt(2) * spread, (steps, solver, off, spread)
        assert spread < 0.25  # or a factor of two would pass: the order of Euler's errors


def test_the_solvers_of_gentk_agree() -> None:
    """The same steps written a second time, in gentk.solvers, on the same grid and noise."""
    z, draws = images(4), noise(4)
    denoise, process = (lambda x, t, c: density()(x, float(t))), VE()
    grid = torch.tensor(ode(6, "euler").levels, dtype=T)
    start = z + 0.5 * draws.normal("0.start", z)
    for solver, module in (("euler", euler), ("heun", heun)):
        other = module.solve(denoise, process, start, grid, torch.zeros_like)
        torch.testing.assert_close(ode(6, solver)(z, draws), other, rtol=0, atol=1e-12)
    names = iter(f"0.{i}" for i in range(6))
    posterior = ancestral.solve(denoise, process, start, grid, lambda x: draws.normal(next(names), x))
    found = ode(6, "exponential", langevin=1.0)(z, draws)
    torch.testing.assert_close(found, posterior, rtol=0, atol=1e-12)
    assert float((ode(6, "exponential", langevin=0.9)(z, draws) - posterior).abs().max()) > 1e-3  # the control
    torch.testing.assert_close(ode(6, "exponential")(z, draws), ode(6, "euler")(z, draws), rtol=0, atol=1e-12)
    own = {"s_churn": 2.0, "s_min": 0.05, "s_max": 0.4, "s_noise": 1.01}
    # Churn's names skip the levels that are not raised; the solver asks for noise only where it raises.
    raised = iter(f"0.{i}.churn" for i, t in enumerate(grid[:-1].tolist()) if 0.05 <= t <= 0.4)
    theirs = edm_stochastic.solve(denoise, process, start, grid, lambda x: draws.normal(next(raised), x), **own)
    ours = ode(6, "heun", churn=Churn(2.0, 0.05, 0.4, 1.01))(z, draws)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


class Mixture:
    """Three components on the line: exact denoiser and moments."""

    weights = torch.tensor([0.3, 0.5, 0.2], dtype=T)
    means = torch.tensor([-1.2, 0.5, 1.7], dtype=T)
    std = 0.3

    def __call__(self, z: Tensor, t: float | Tensor) -> Tensor:
        v = self.std**2 + t**2
        w = torch.softmax(self.weights.log() - (z[..., None] - self.means) ** 2 / (2 * v), -1)
        return ((self.std**2 * z[..., None] + t**2 * self.means) / v * w).sum(-1)

    def draw(self, n: int) -> Tensor:
        gen = torch.Generator().manual_seed(0)
        k = torch.multinomial(self.weights, n, replacement=True, generator=gen)
        return (self.means[k] + self.std * torch.randn(n, generator=gen, dtype=T))[:, None]


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, 2.0, 4.0])
def test_every_lambda_has_the_same_marginal(lam: float) -> None:
    """Data in, data out: mean and variance stay within the 2 % of the method notes, for the steps' bias, and three
    standard errors of the paired difference."""
    mixture, n = Mixture(), 20_000
    x = mixture.draw(n)
    out = PurifyPP(mixture, 1.5, 120, t_min=0.002, solver="exponential", langevin=lam)(x, noise(n))
    mean, std = x.mean(), x.std()
    for power in (1, 2):
        d = ((out - mean) / std) ** power - ((x - mean) / std) ** power
        assert abs(float(d.mean())) < 0.02 + 3 * float(d.std()) / math.sqrt(n)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0, 2.0, 4.0])
def test_what_is_kept_of_gaussian_data_by_every_lambda(lam: float) -> None:
    """D is linear there, so a run is: correlation with the image and variance are known in closed form for the very
    steps that are taken, and measured here to four standard errors. The corresponding one of no Langevin part, too far
    from every other lambda's, is the control."""
    v, level, n = 0.7, 1.5, 20_000
    x = math.sqrt(v) * torch.randn(n, 1, generator=torch.Generator().manual_seed(2), dtype=T)
    purifier = PurifyPP(lambda z, t: z * v / (v + t**2), level, 30, t_min=0.002, solver="exponential", langevin=lam)
    out = purifier(x, noise(n))

    def exact(lam: float) -> tuple[float, float]:
        kept, var = 1.0, v + level**2
        for t, u in pairwise(purifier.levels):
            a, r = v / (v + t**2), u / t
            step = a + r ** (1 + lam) * (1 - a)
            kept, var = kept * step, step**2 * var + u**2 * (1 - r ** (2 * lam))
        return kept * math.sqrt(v / var), var

    correlation, var = exact(lam)
    found = float(torch.corrcoef(torch.cat([x, out], 1).T)[0, 1])
    assert abs(found - correlation) < 4 * (1 - correlation**2) / math.sqrt(n)
    assert abs(float(out.var()) / var - 1) < 4 * math.sqrt(2 / n)
    if lam:
        assert abs(found - exact(0.0)[0]) > 8 * (1 - correlation**2) / math.sqrt(n)


def test_randomness_forgets_the_image_and_a_wrong_noise_shows() -> None:
    mixture, n = Mixture(), 10_000
    x, draws = mixture.draw(n), noise(n)
    kept = []
    for lam in (0.0, 0.5, 2.0):
        out = PurifyPP(mixture, 1.5, 60, solver="exponential", langevin=lam)(x, draws)
        kept.append(float(torch.corrcoef(torch.cat([x, out], 1).T)[0, 1]))
    assert kept[0] > kept[1] + 0.05 > kept[2] + 0.1

    class Twice(Noise):
        """The known mistake: sqrt(2 lambda) in place of what the score's factor 1 + lambda asks for."""

        def normal(self, name: str, like: Tensor) -> Tensor:
            return super().normal(name, like) * (1 if "start" in name else math.sqrt(2))

    wrong = PurifyPP(mixture, 1.5, 60, solver="exponential", langevin=1.0)(x, Twice(draws.tape))
    assert float(wrong.var()) > 1.08 * float(x.var())


def test_grid_is_on_t_star_and_the_noise_has_its_level() -> None:
    levels = PurifyPP(density(), 0.34, 10, t_min=0.01).levels
    assert levels[0] == 0.34
    assert math.isclose(levels[-2], 0.01, rel_tol=1e-9)
    assert levels[-1] == 0
    assert len(levels) == 11
    z = torch.zeros(400, 1, 8, 8)
    seen: list[Tensor] = []

    def spy(u: Tensor, t: float | Tensor) -> Tensor:
        seen.append(u)
        return torch.zeros_like(u)

    PurifyPP(spy, 0.34, 1)(z, noise(400))
    assert abs(float(seen[0].std()) / 0.34 - 1) < 0.01  # 25 600 numbers: 2.3 standard errors


@pytest.mark.parametrize("solver", ["euler", "heun", "exponential"])
@pytest.mark.parametrize("steps", [1, 2])
def test_no_division_by_the_last_level(solver: str, steps: int) -> None:
    """A correction on the step to 0 would divide by it; one step is one call of D."""
    own = {"langevin": 1.0, "corrector": True} if solver == "exponential" else {}
    purifier = PurifyPP(density(), 0.5, steps, t_min=0.002, solver=solver, **own)
    z, draws = images(3), noise(3)
    out = purifier(z, draws)
    assert bool(out.isfinite().all())
    if steps == 1:
        torch.testing.assert_close(out, density()(z + 0.5 * draws.normal("0.start", z), 0.5), rtol=0, atol=1e-12)


def test_nfe_is_what_is_called() -> None:
    calls: list[float] = []

    def spy(z: Tensor, t: float | Tensor) -> Tensor:
        calls.append(float(t))
        return 0.5 * z

    for own in (
        {"solver": "euler"}, {"solver": "heun"}, {"solver": "exponential", "langevin": 1.0, "corrector": True},
        {"solver": "heun", "rounds": 3}, {"solver": "heun", "churn": Churn(3.0)},
    ):  # fmt: skip
        calls.clear()
        purifier = PurifyPP(spy, 0.5, 5, **own)
        purifier(images(1), noise(1))
        assert len(calls) == purifier.nfe
        calls.clear()
        purifier.surrogate(images(1), noise(1))
        assert calls == [0.5]


def test_single_precision_is_enough() -> None:
    z, draws = images(16), noise(16)
    for own in ({"solver": "heun"}, {"solver": "exponential", "langevin": 1.0}):
        purifier = PurifyPP(density(), 0.5, 10, **own)
        assert float((purifier(z.float(), draws) - purifier(z, draws)).abs().max()) < 1e-4


def test_rows_are_their_own() -> None:
    """Permuted, split, repeated: an image's answer depends on the image and its noise alone."""
    z, ids = images(6), torch.arange(6)
    purifier = PurifyPP(density(), 0.5, 5, solver="exponential", langevin=1.0, rounds=2)
    whole = purifier(z, Noise(Tape.of(ids, 3)))
    order = torch.tensor([4, 0, 2, 5, 1, 3])
    torch.testing.assert_close(purifier(z[order], Noise(Tape.of(ids[order], 3))), whole[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(purifier(z[2:3], Noise(Tape.of(ids[2:3], 3))), whole[2:3], rtol=0, atol=1e-12)
    assert float((purifier(z, Noise(Tape.of(ids, 4))) - whole).abs().max()) > 0.01
    assert float((purifier(z, Noise(Tape.of(ids, 3), "1/")) - whole).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"solver": "heun", "langevin": 1.0}, "is a step of the ODE"),
        ({"solver": "euler", "corrector": True}, "is a step of the ODE"),
        ({"solver": "exponential", "langevin": 1.0, "churn": Churn(1.0)}, "two ways to the same end"),
        ({"t_min": 0.6}, "not between 0 and t_star"),
    ],
)
def test_settings_that_do_not_go_together(own: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        PurifyPP(density(), 0.5, 5, **own)  # type: ignore[arg-type]
