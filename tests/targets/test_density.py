"""What samplers are trained on: posteriors of tables, functions of the user's, energies; and the probe's faults."""

from __future__ import annotations

import gzip
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gentk.errors import GentkError, MissingAsset, RecipeError, RunFailed
from gentk.recipe.targets import Target
from gentk.solvers import laplace
from gentk.targets import Density, density, probe, tables
from gentk.targets.logistic import Logistic
from gentk.targets.maps import Map

CSV = "red,1.0,?,yes\nblue,2.0,3.0,no\nred,3.0,5.0,yes\ngreen,4.0,7.0,no\nblue,5.0,1.0,yes\n"


def small(tmp_path: Path, text: str = CSV, name: str = "small.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_table_becomes_standardised_columns_without_a_category_s_first_level(tmp_path: Path) -> None:
    found = tables.read(small(tmp_path))
    assert found.columns == ("x0=green", "x0=red", "x1", "x2")
    assert found.dropped == 1, "a row whose number is missing goes"
    assert found.positive == "yes"
    assert found.y.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(found.x.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(found.x.std(0), 1, rtol=1e-12)
    zipped = tmp_path / "small.csv.gz"
    zipped.write_bytes(gzip.compress(CSV.encode()))
    np.testing.assert_array_equal(tables.read(zipped).x, found.x)
    named = tables.read(small(tmp_path, "a,b,c,d\n" + CSV, "named.csv"), header=True, drop=(0,))
    assert named.columns == ("b", "c")


def test_a_label_in_the_wrong_column_is_named_with_the_columns_that_fit(tmp_path: Path) -> None:
    path = small(tmp_path)
    with pytest.raises(RecipeError, match=r"column 1 of small\.csv has 5 different values, a label has two") as caught:
        tables.read(path, label=1)
    assert "columns that have two: 3" in caught.value.hint
    with pytest.raises(RecipeError, match="label: 7 is outside"):
        tables.read(path, label=7)
    named = small(tmp_path, "a,b,c,d\n" + CSV, "named.csv")
    with pytest.raises(RecipeError, match="3 different values") as caught:
        tables.read(named)
    assert "target.header" in caught.value.hint


def test_what_is_no_table_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingAsset, match="no such table"):
        tables.load(str(tmp_path / "none.csv"))
    with pytest.raises(RunFailed, match="row 2 has 2 columns"):
        tables.read(small(tmp_path, "1,2,a\n3,b\n4,5,a\n1,2,b\n2,2,a\n"))
    ids = "".join(f"id{k},{k},{'ab'[k % 2]}\n" for k in range(80))
    with pytest.raises(RecipeError, match="80 different words"):
        tables.read(small(tmp_path, ids, "ids.csv"))
    with pytest.raises(RecipeError, match="did you mean `german`"):
        tables.load("germn")
    monkeypatch.delenv("GENTK_DATA", raising=False)
    with pytest.raises(MissingAsset, match="no folder is given"):
        tables.load("german")


def test_the_posterior_is_the_sum_of_its_rows_and_one_prior(tmp_path: Path) -> None:
    table = tables.load("synthetic")
    model = Logistic(table, prior=0.7)
    assert (len(model), model.dim) == (690, 15)
    w = 0.5 * torch.randn(3, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = np.concatenate([np.ones((690, 1)), table.x], 1)
    logits = x @ w.numpy().T
    by_hand = (table.y[:, None] * logits - np.logaddexp(0, logits)).sum(0) - (w.numpy() ** 2).sum(1) / (2 * 0.49)
    np.testing.assert_allclose(model.log_prob(w).numpy(), by_hand, rtol=1e-12)
    without = Logistic(table, intercept=False)
    assert without.dim == 14


def test_s12_scores_of_mini_batches_are_right_in_the_mean_and_not_without_their_factor() -> None:
    model = Logistic(tables.load("synthetic"), prior=0.5)
    w = 0.3 * torch.randn(1, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gen = torch.Generator().manual_seed(1)

    def score(value: Tensor, at: Tensor) -> Tensor:
        return torch.autograd.grad(value.sum(), at)[0][0]

    at = w.clone().requires_grad_()
    exact = score(model.log_prob(at), at)
    each = torch.stack([score(model.estimate(at, 69, gen), at) for _ in range(400)])
    error = each.std(0) / 20
    assert ((each.mean(0) - exact).abs() < 5 * error).all()
    prior = -w[0] / 0.25
    lone = (each.mean(0) - prior) / 10 + prior  # the mistake: the rows as they are
    often = each.mean(0) + 9 * prior  # the mistake: the prior counted once a batch
    for wrong in (lone, often):
        assert ((wrong - exact).abs() > 5 * error).any()


def test_laplace_finds_a_gaussian_s_own_moments_and_a_posterior_s_mode() -> None:
    gen = torch.Generator().manual_seed(0)
    root = torch.eye(4, dtype=torch.float64) + 0.4 * torch.randn(4, 4, dtype=torch.float64, generator=gen)
    covariance, mean = root @ root.T, torch.arange(4.0, dtype=torch.float64)
    precision = torch.linalg.inv(covariance)
    found = laplace.fit(lambda x: -0.5 * ((x - mean) @ precision * (x - mean)).sum(1), torch.zeros(4))
    torch.testing.assert_close(found.mode, mean)
    torch.testing.assert_close(found.root @ found.root.T, covariance)
    model = Logistic(tables.load("synthetic"))
    mode = laplace.fit(model.log_prob, torch.full((15,), 3.0)).mode.requires_grad_()
    (grad,) = torch.autograd.grad(model.log_prob(mode[None]).sum(), mode)
    assert grad.norm() < 1e-5
    with pytest.raises(RunFailed, match="no mode"):
        laplace.fit(lambda x: -x[:, 0].square(), torch.ones(2))
    with pytest.raises(RecipeError, match="dimensions"):
        laplace.fit(lambda x: -x.square().sum(1), torch.zeros(1001))


def test_maps_add_their_jacobian() -> None:
    """A gamma and a beta law in y integrate to 1 only with it."""
    change = Map(("real", "positive", "unit"))
    y = torch.tensor([[0.3, -1.2, 0.4], [-2.0, 3.0, -50.0]], dtype=torch.float64)
    theta = change(y)
    torch.testing.assert_close(theta[0], torch.tensor([0.3, math.exp(-1.2), 1 / (1 + math.exp(-0.4))]).double())
    numeric = torch.autograd.functional.jacobian(lambda v: change(v[None])[0], y[0])
    torch.testing.assert_close(change.log_jacobian(y)[0], torch.linalg.slogdet(numeric)[1])
    axis = torch.linspace(-30, 8, 4000, dtype=torch.float64)[:, None]
    gamma = Map(("positive",))
    value = -gamma(axis)[:, 0] + 2 * axis[:, 0] - math.log(2)  # theta^2 e^-theta / 2, a normalised density
    width = float(axis[1] - axis[0])
    assert float((value + gamma.log_jacobian(axis)).exp().sum()) * width == pytest.approx(1, abs=1e-5)
    assert float(value.exp().sum()) * width != pytest.approx(1, abs=0.2), "the control: without the Jacobian"


FUNCTIONS = """\
import torch
def good(x): return -x.square().sum(1) / 2
def energy(x): return x.square().sum(1) / 2
def flat(x): return -x[:, 0].square()
def gamma(x): return (2 * x.log() - x).sum(1)
def scalar(x): return -x.square().sum()
def mixed(x): return -(x - x.mean(0)).square().sum(1) - x.square().sum(1)
def detached(x): return -x.detach().square().sum(1)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_densities.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    sys.modules.pop("my_densities", None)
    return "my_densities"


def ask(found: Density, scale: float = 1.0) -> None:
    gen = torch.Generator().manual_seed(0)
    probe.check(found, scale * torch.randn(256, found.dim, generator=gen), scale=scale, gen=gen)


def test_a_user_s_function_is_a_target(mine: str) -> None:
    found = density(Target(name=f"{mine}:good", dim=3))
    assert (found.kind, found.shape) == ("function", (3,))
    ask(found)
    with pytest.raises(RecipeError, match=r"target\.dim"):
        density(Target(name=f"{mine}:good"))
    with pytest.raises(RecipeError, match="no function `nope`"):
        density(Target(name=f"{mine}:nope", dim=2))
    with pytest.raises(MissingAsset, match="no module `absent`"):
        density(Target(name="absent:good", dim=2))


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("energy", RecipeError, "energy U with its sign swapped"),
        ("flat", RecipeError, r"improper.*does not fall along \+x2, -x2"),
        ("scalar", RecipeError, r"not \(N,\)"),
        ("mixed", RecipeError, "depends on the others in the batch"),
        ("detached", RecipeError, "no gradient reaches"),
    ],
)
def test_the_probe_names_what_is_wrong(mine: str, name: str, kind: type[GentkError], words: str) -> None:
    with pytest.raises(kind, match=words):
        ask(density(Target(name=f"{mine}:{name}", dim=2)))


def test_s15_constrained_parameters_ask_for_a_map_and_pass_with_one(mine: str) -> None:
    with pytest.raises(RunFailed, match="not finite at") as caught:
        ask(density(Target(name=f"{mine}:gamma", dim=2)))
    assert "target.map" in caught.value.hint
    found = density(Target(name=f"{mine}:gamma", dim=2, map=("positive", "positive")))
    ask(found)
    assert found.constrain is not None
    assert (found.constrain(torch.randn(9, 2)) > 0).all()
    with pytest.raises(RecipeError, match="1 supports for 2 parameters"):
        density(Target(name=f"{mine}:gamma", dim=2, map=("positive",)))


def test_a_tail_makes_an_improper_target_proper(mine: str) -> None:
    found = density(Target(name=f"{mine}:flat", dim=2, tail=5.0))
    ask(found)
    x = torch.tensor([[1.0, 2.0]])
    assert float(found.log_prob(x)[0]) == pytest.approx(-1 - 5 / 50)


def test_every_target_that_ships_passes_the_probe() -> None:
    from gentk import targets

    for name in (*targets.names(), *targets.published()):
        if targets.find(name).log_prob is not None:
            ask(density(Target(name=name)), scale=3.0)
    for name in ("logistic:synthetic", "logistic:breast-cancer"):
        ask(density(Target(name=name)), scale=0.3)


def test_energies_are_targets_with_their_data_s_place_and_levels(tmp_path: Path) -> None:
    from gentk.nets import energy, weights
    from gentk.recipe.networks import EnergyConv, EnergyMlp

    for section, shape, levels in (
        (EnergyMlp(name="energy-mlp", width=16, depth=2), (2,), None),
        (EnergyConv(name="energy-conv", width=8, multipliers=(1,)), (1, 4, 4), (0.1, 2.0)),
    ):
        data = 0.7 * torch.randn(200, *shape, generator=torch.Generator().manual_seed(0)) + 0.3
        net = energy.build(section, shape=shape, levels=levels, data=data)
        header = {
            "kind": "energy",
            "net": section.model_dump(mode="json"),
            "levels": levels,
            "data": {"name": "toy", "shape": list(shape), "classes": 0},
        }
        path = tmp_path / f"{section.name}.safetensors"
        weights.save(path, net, header)
        found = density(Target(name=f"ebm:{path}"))
        assert (found.kind, found.shape) == ("energy", shape)
        x = torch.randn(5, found.dim, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(found.log_prob(x), -net(x.reshape(5, *shape)))
        assert found.middle is not None
        assert found.middle.mean() == pytest.approx(0.3, abs=0.1)
        assert found.spread == pytest.approx(0.7, abs=0.1)
        ask(found)
        if levels is None:
            assert found.noised is None
            with pytest.raises(RecipeError, match="static energy"):
                density(Target(name=f"ebm:{path}", level=0.5))
        else:
            assert found.noised is not None
            torch.testing.assert_close(found.noised(0.5)(x), -net(x.reshape(5, *shape), 0.5))
            torch.testing.assert_close(
                density(Target(name=f"ebm:{path}", level=0.5)).log_prob(x), -net(x.reshape(5, *shape), 0.5)
            )
    with pytest.raises(MissingAsset):
        density(Target(name="ebm:nowhere"))
