"""NUTS beside our own chains on one posterior; without blackjax it says how to get it."""

from __future__ import annotations

import sys

import pytest
import torch

from gentk.errors import MissingAsset
from gentk.metrics.nuts import nuts
from gentk.metrics.reference import chained
from gentk.solvers import laplace
from gentk.targets.logistic import Logistic
from gentk.targets.tables import Table, load


def small() -> Logistic:
    table = load("synthetic")
    return Logistic(Table(table.x[:200, :3], table.y[:200], table.columns[:3], table.positive))


def test_without_blackjax_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blackjax", None)
    with pytest.raises(MissingAsset, match="blackjax") as caught:
        nuts(small(), 0)
    assert "gentk[mcmc]" in caught.value.hint


def test_nuts_and_hmc_agree_on_a_posterior() -> None:
    pytest.importorskip("blackjax", reason="needs gentk[mcmc]", exc_type=ImportError)
    model = small()
    theirs = nuts(model, 0, warmup=300, length=500)
    assert theirs.converged
    found = laplace.fit(model.log_prob, torch.zeros(model.dim))
    middle, root = found.mode.float(), found.root.float()
    ours = chained(
        model.log_prob, lambda y: middle + y @ root.T, model.dim, gen=torch.Generator().manual_seed(0), length=100
    )
    assert ours.converged
    a, b = theirs.draws.double(), ours.draws.double()
    error = b.std(0) * (1 / theirs.ess + 1 / ours.ess) ** 0.5
    assert ((a.mean(0) - b.mean(0)).abs() < 5 * error).all()
    assert ((a.std(0) / b.std(0)).log().abs() < 5 / min(theirs.ess, ours.ess) ** 0.5).all()
