"""Denoisers of linear processes and the solvers in their coordinates: test Z (A = 0), the bases, exactness, noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gentk.engine.linear import LinearSampler
from gentk.errors import RecipeError
from gentk.losses.matching import edm
from gentk.nets.mlp import Mlp
from gentk.processes import schedules
from gentk.processes.denoiser import Denoiser
from gentk.processes.grids import build
from gentk.processes.linear_denoiser import LinearDenoiser
from gentk.recipe.linear import Betas, Drift
from gentk.recipe.schema import TimeGrid
from gentk.solvers import coordinates, ddim, dpmpp_2m, dpmpp_3m, drawn, euler, heun, sa_solver, unipc
from gentk.tasks.train._bridging import matching
from gentk.tasks.train.vsdm import Config

F64 = torch.float64
CPU = torch.device("cpu")
LINEAR = Betas(beta_min=0.1, beta_max=20.0, power=1.0, t_min=1e-5)
FORMS = [{"form": "diag"}, {"form": "full"}, {"form": "low-rank", "rank": 2}, {"form": "full", "cells": 3}]


def made(drift: dict[str, object], d: int = 4, betas: Betas = LINEAR, *, seed: int = 0) -> LinearDenoiser:
    """A denoiser with a random network in float64 and a random A, of data that depend on each other."""
    torch.manual_seed(seed)
    net = Mlp(dim=d, classes=0, width=16, blocks=1).double()
    nn.init.normal_(net.out.weight, std=0.2)
    denoiser = LinearDenoiser(net, betas, Drift(**drift), (d,))  # type: ignore[arg-type]
    denoiser.learn_data(torch.randn(500, d) @ torch.randn(d, d) + 3)
    denoiser.strength.copy_(0.2 * torch.randn(denoiser.strength.shape))
    return denoiser.requires_grad_(False)


def isotropic() -> tuple[LinearDenoiser, Denoiser]:
    """A = 0, mean 0 and one scale: the same network as a linear denoiser and as the package's own with `vp`."""
    linear = made({"form": "diag"}, 3)
    linear.strength.zero_()
    linear.mean.zero_()
    linear.root.zero_()
    linear.rest.fill_(0.7)
    return linear, Denoiser(linear.net, schedules.VP(0.1, 20.0, 1e-5), "edm", 0.7)


def test_z_the_denoiser_and_its_loss_are_those_of_the_plain_process() -> None:
    """Test Z in float64: 1e-13 of rounding; the loss from the same draws. Control: A = 0.05."""
    linear, plain = isotropic()
    x, t = torch.randn(64, 3, dtype=F64), torch.rand(64, dtype=F64) * 0.99 + 0.01
    torch.testing.assert_close(linear(x, t), plain(x, t), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(linear(x, t[0]), plain(x, t[0]), rtol=1e-12, atol=1e-13)
    config = Config(name="vsdm")

    def losses() -> tuple[float, float]:
        mine, _ = matching(linear, x, None, config, torch.Generator().manual_seed(5))
        gen = torch.Generator().manual_seed(5)
        u = torch.rand(64, generator=gen, dtype=F64)
        time, eps = 1e-5 + (1 - 1e-5) * u, torch.randn(x.shape, generator=gen)
        return float(mine), float(edm(plain, plain.process, x, time, eps.double(), None, 0.7).mean())

    mine, theirs = losses()
    assert mine == pytest.approx(theirs, rel=1e-6)
    linear.strength.fill_(0.05)
    mine, _ = losses()
    assert abs(mine / theirs - 1) > 1e-4


SOLVERS = [
    ("euler", euler, {}),
    ("heun", heun, {}),
    ("ddim", ddim, {}),
    ("ddim", ddim, {"eta": 1.0}),
    ("dpmpp-2m", dpmpp_2m, {}),
    ("dpmpp-3m", dpmpp_3m, {}),
    ("unipc", unipc, {}),
    ("sa-solver", sa_solver, {}),
    ("sa-solver", sa_solver, {"tau": 1.0, "mode": "more", "evaluate": "pece"}),
]


@pytest.mark.parametrize(
    ("name", "module", "own"), SOLVERS, ids=lambda each: str(each) if isinstance(each, dict) else ""
)
def test_z_every_solver_is_the_plain_one_where_a_is_nought(name: str, module: object, own: dict[str, object]) -> None:
    linear, plain = isotropic()
    grid = build(TimeGrid(name="time"), 7, plain.process)
    x = torch.randn(8, 3, dtype=F64)
    solve = coordinates.solver(name, linear.process, linear.index, grid, **own)
    mine = solve(linear.clean, None, x, grid, drawn(torch.Generator().manual_seed(1)))
    noise = drawn(torch.Generator().manual_seed(1))
    theirs = module.solve(plain, plain.process, x, grid, noise, **own)  # type: ignore[attr-defined]
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    linear.strength[0, 1] = 0.3
    solve = coordinates.solver(name, linear.process, linear.index, grid, **own)
    other = solve(linear.clean, None, x, grid, drawn(torch.Generator().manual_seed(1)))
    assert float((other - theirs).abs().max()) > 1e-3


@pytest.mark.parametrize("drift", FORMS, ids=str)
def test_coordinates_turn_and_turn_back(drift: dict[str, object]) -> None:
    """|z| = |y|, y = to_y(to_z(y)); the matrix has the rates; noised x has the covariance of the general kernel."""
    from gentk.processes import ornstein

    denoiser = made(drift)
    y = torch.randn(50, 4, dtype=F64)
    z = denoiser.to_z(y)
    torch.testing.assert_close(denoiser.to_y(z), y)
    torch.testing.assert_close(z.norm(dim=1), y.norm(dim=1))
    torch.testing.assert_close(denoiser.decode(denoiser.encode(y)), y)
    assert float(denoiser.counts.sum()) == 4
    if denoiser.drift.cells == 1:
        t = torch.tensor(0.4, dtype=F64)
        m, c = ornstein.kernel(torch.eye(4, dtype=F64) - 2 * denoiser.matrix(), float(denoiser.process.integral(t)))
        zero = torch.zeros(4, denoiser.index.numel(), dtype=F64)
        mean = denoiser.to_y(denoiser.noised(denoiser.to_z(torch.eye(4, dtype=F64)), t, zero))
        torch.testing.assert_close(mean.T, m, rtol=1e-10, atol=1e-12)
        root = denoiser.to_y(denoiser.noised(zero, t, denoiser.to_z(torch.eye(4, dtype=F64))))
        torch.testing.assert_close(root.T @ root, c, rtol=1e-10, atol=1e-12)
        assert float((root.T @ root - torch.eye(4) * c[0, 0]).abs().max()) > 1e-3


@pytest.mark.parametrize("drift", FORMS, ids=str)
def test_gaussian_data_are_denoised_exactly_by_no_network(drift: dict[str, object]) -> None:
    """Basis and preconditioning: with D diagonal where the covariance is, E[x0 | x_t] = m C (m C m + S)^-1 in each."""
    denoiser = made(drift)
    nn.init.zeros_(denoiser.net.out.weight)  # type: ignore[attr-defined, arg-type]
    nn.init.zeros_(denoiser.net.out.bias)  # type: ignore[attr-defined, arg-type]
    cov = denoiser.root @ denoiser.root.T
    if drift["form"] == "diag":
        cov = cov.diagonal().diag()
    if drift["form"] == "low-rank":  # the rest of the data counts as round
        inside = denoiser.basis @ denoiser.basis.T
        rest = denoiser.variances()[-1]
        cov = inside @ cov @ inside + rest * (torch.eye(4, dtype=F64) - inside)
    t, x = torch.tensor(0.3, dtype=F64), torch.randn(20, 4, dtype=F64) + 3
    one = torch.eye(4, dtype=F64)
    alpha, sigma, _ = denoiser.levels(t)
    m = denoiser.to_y(alpha * denoiser.to_z(one))
    s = denoiser.to_y(sigma**2 * denoiser.to_z(one))
    gain = cov @ m @ torch.linalg.inv(m @ cov @ m + s)
    exact = denoiser.mean + (x - denoiser.mean) @ gain.T
    torch.testing.assert_close(denoiser(x, t), exact, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("prior", ["exact", "kernel", "standard"])
def test_where_drawing_starts(prior: str) -> None:
    """The covariance of 40,000 starts against its formula, within 5 standard errors."""
    denoiser = made({"form": "full"}, betas=Betas(beta_max=3.0))
    gen, t = torch.Generator().manual_seed(0), torch.ones((), dtype=F64)
    n = 40_000
    z = denoiser.start(torch.randn(n, 4, generator=gen), torch.randn(n, 8, generator=gen), prior, t)  # type: ignore[arg-type]
    alpha, sigma, sd = denoiser.levels(t)
    wanted = {"exact": alpha**2 * sd**2 + sigma**2, "kernel": sigma**2, "standard": torch.ones(4, dtype=F64)}[prior]
    cov = torch.cov(z.double().T)
    scale = wanted.sqrt()[:, None] * wanted.sqrt()
    assert float(((cov - wanted.diag()) / scale).abs().max()) < 5 * math.sqrt(2 / n)
    assert float((denoiser.variances() - sd**2).abs().max()) < 1e-9 * float(sd.max() ** 2)


@pytest.mark.parametrize("form", ["diag", "low-rank", "full"])
def test_a_start_is_of_its_class(form: str) -> None:
    """Means and covariances of a class's starts, and of all where none is named, within 5 standard errors.

    Control: told nothing of classes, each class starts at the mean of all.
    """
    gen, n = torch.Generator().manual_seed(0), 40_000
    means, label = torch.tensor([[6.0, 0, 0, 0], [-3, 2, 0, 1]], dtype=F64), torch.arange(6_000) % 3 // 2  # two to one
    mix = torch.randn(4, 4, generator=gen, dtype=F64)
    x = means[label] + torch.randn(6_000, 4, generator=gen, dtype=F64) @ mix + 3
    parts = (nn.Linear(4, 4), Betas(beta_max=3.0), Drift(form=form, rank=2), (4,))  # type: ignore[arg-type]
    knows, blind = LinearDenoiser(*parts, classes=2), LinearDenoiser(*parts)
    knows.learn_data(x, label)
    blind.learn_data(x)
    torch.testing.assert_close(knows.variances(), blind.variances(), rtol=1e-9, atol=1e-12)
    t = torch.ones((), dtype=F64)
    alpha, sigma, _ = knows.levels(t)
    within = x - torch.stack([x[label == k].mean(0) for k in (0, 1)])[label]

    def starts(of: LinearDenoiser, cond: Tensor | None) -> Tensor:
        noise = torch.randn(n, 4, generator=gen, dtype=F64)
        return of.start(noise, torch.randn(n, of.starts_from, generator=gen, dtype=F64), "exact", t, cond)

    for cond, rows in ((None, x), (0, x[label == 0]), (1, x[label == 1])):
        z = starts(knows, None if cond is None else torch.full((n,), cond))
        y = rows - knows.mean
        inner = torch.cov((x if cond is None else within).T, correction=0)
        lift = knows.to_z(torch.eye(4, dtype=F64)).T * alpha[:, None]  # alpha z of y
        mean = lift @ y.mean(0)
        error = 5 * (z.var(0) / n).sqrt() + 1e-12
        assert bool(((z.mean(0) - mean).abs() < error).all())
        if form != "low-rank":  # whose coordinates are more than the dimensions
            wanted = lift @ inner @ lift.T + torch.diag(sigma**2)
            scale = wanted.diagonal().sqrt()
            assert float(((torch.cov(z.T) - wanted) / (scale[:, None] * scale)).abs().max()) < 5 * math.sqrt(2 / n)
        if cond is not None:
            same = starts(blind, torch.full((n,), cond)).mean(0)
            assert bool(((same - mean).abs() > 4 * error).any())
    noise, xi = torch.randn(9, 4, generator=gen), torch.randn(9, knows.starts_from, generator=gen)
    dropped = knows.start(noise, xi, "exact", t, torch.full((9,), 2))  # the row after the last class: no label
    assert torch.equal(dropped, knows.start(noise, xi, "exact", t))


def test_a_sample_is_the_same_in_every_batch_and_solver_noise_turns_with_the_basis() -> None:
    denoiser = made({"form": "low-rank", "rank": 2}).float()
    grid = build(TimeGrid(name="time"), 6, denoiser.process)
    sampler = LinearSampler(denoiser, (), CPU, "exact", "sa-solver", grid, {"tau": 1.0})
    torch.testing.assert_close(sampler(6, 3, batch=6), sampler(6, 3, batch=4), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(sampler(6, 3, batch=6), sampler(6, 4, batch=6))


def test_what_has_no_coordinates_is_refused() -> None:
    denoiser = made({"form": "diag"})
    grid = build(TimeGrid(name="time"), 5, denoiser.process)
    with pytest.raises(RecipeError, match="edm-stochastic"):
        coordinates.solver("edm-stochastic", denoiser.process, denoiser.index, grid)
    with pytest.raises(RecipeError, match="rank"):
        made({"form": "low-rank", "rank": 4})


def test_a_change_of_a_is_a_change_of_the_process() -> None:
    """In place or by a state dict, as a resumed run makes it."""
    denoiser, other = made({"form": "diag"}), made({"form": "diag"}, seed=1)
    t = torch.tensor(0.5, dtype=F64)
    before = denoiser.process.alphas(t)
    assert torch.equal(denoiser.process.alphas(t), before)
    denoiser.load_state_dict(other.state_dict())
    assert torch.equal(denoiser.process.alphas(t), other.process.alphas(t))
    assert not torch.equal(denoiser.process.alphas(t), before)


def test_constant_dimensions_divide_nothing() -> None:
    denoiser = LinearDenoiser(nn.Linear(2, 2), LINEAR, Drift(), (2,))
    denoiser.learn_data(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    x = torch.tensor([[2.0, 5.0]])
    alpha, sigma, sd = denoiser.levels(torch.tensor(0.5, dtype=F64))
    assert float(sd[1]) == pytest.approx(0.01 * math.sqrt(0.5))
    assert bool(torch.isfinite(denoiser.encode(x) / (alpha * sd + sigma)).all())
