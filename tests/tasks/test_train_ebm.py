"""`train-ebm`: what a run learns, keeps and says, and that the known mistakes would be seen (traps T1 to T18)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gentk.engine import loop, optim, rng
from gentk.engine.energetic import Chains
from gentk.engine.method import Batch, Result
from gentk.engine.stop import StopRequest
from gentk.errors import RecipeError, RunFailed
from gentk.losses.energy import Contrast, contrast
from gentk.metrics import quadrature
from gentk.nets.energy import Energy
from gentk.recipe import registry
from gentk.recipe.load import loads
from gentk.recipe.schema import Ema
from gentk.tasks.train_ebm import _fitting
from gentk.tasks.train_ebm._fitting import Fitting, Given, Remembering, bare
from gentk.tasks.train_ebm._showing import Showing, widest_gap
from tests.engine.tiny import Folder
from tests.tasks.toys import CPU

LEVELS = {"low": 0.1, "high": 2.0, "count": 5}
RANKING: dict[str, Any] = {"name": "dcd", "sigma": 0.5, "candidates": 4}
METHODS: dict[str, dict[str, Any]] = {
    "ranking": RANKING,
    "sigmas": RANKING | {"sigma": (0.1, 1.0)},
    "posterior": {"name": "dcd", "estimator": "posterior", "steps": 3, "detail": 0.3},
    "one-step": {"name": "dcd", "estimator": "one-step", "sigma": 0.1},
    "cd": {"name": "cd", "steps": 3},
    "pcd": {"name": "pcd", "steps": 3, "buffer": 60},
}


def build(method: dict[str, Any], data: str = "points:ring8", **own: Any) -> Fitting:
    net = {"name": "energy-mlp", "width": 32, "depth": 2} if "points" in data else {"name": "energy-conv", "width": 8}
    sections = {
        "data": {"name": data, "points": 2000},
        "net": net,
        "optim": {"lr": 2e-3, "betas": (0.9, 0.99)},
        "train": {"steps": 6, "batch": 32, "checkpoint_every": 3},
        "measure": {"features": "identity", "n": 64, "steps": 20, "longer": 0},
    }
    head = {"task": "train-ebm", "about": "a test", "size": "smoke"}
    section = registry.recipe_schema("train-ebm", method["name"])(**head, method=method, **(sections | own))
    built = registry.method_module("train-ebm", method["name"]).build(section, CPU)
    assert isinstance(built, Fitting)
    return built


def fit(folder: Path, method: Fitting) -> loop.State:
    """Trains by the engine, without pictures."""
    method.preview = lambda averaged: Result()  # type: ignore[method-assign]
    run = Folder(folder)
    try:
        return loop.fit(
            method,
            train=method.recipe.train,
            average=Ema(half_life=1000),
            seed=3,
            where=CPU,
            run=run,  # type: ignore[arg-type]
            stop=StopRequest(),
        )
    finally:
        run.log.close()


def steps(method: Fitting, count: int, lr: float = 5e-3) -> Energy:
    """Trains by hand: no files, no averages."""
    net = method.nets["energy"]
    adam = torch.optim.Adam(net.parameters(), lr=lr)
    for i in range(count):
        x, _ = method.data.batch(rng.indices(0, i * 128, 128, len(method.data)))
        loss, _ = next(method.phases(i)).loss(Batch(128, x), rng.generator(0, i))
        adam.zero_grad()
        loss.backward()
        adam.step()
    return bare(net).eval()


def one(method: Fitting, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    x, _ = method.data.batch(torch.arange(32))
    return next(method.phases(0)).loss(Batch(32, x), rng.generator(seed))


# --- the engine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, LEVELS])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_stopped_and_goes_on_bit_for_bit(tmp_path: Path, name: str, levels: Any) -> None:
    """Cut off after step 4, resumed from the checkpoint of step 3: the same weights, and PCD's chains, as in one go."""
    method = METHODS[name] | {"levels": levels}
    whole = fit(tmp_path / "whole", build(method))
    cut = build(method)
    phases = cut.phases

    def until(step: int) -> Any:
        if step == 4:
            raise KeyboardInterrupt
        return phases(step)

    cut.phases = until  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", cut)
    again = fit(tmp_path / "cut", build(method))
    for group in ("nets", "averaged"):
        first, second = (getattr(state, group)["energy"].state_dict() for state in (whole, again))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[k], second[k]) for k in first), name
    assert isinstance(whole.nets["energy"], Remembering) == (name == "pcd")


@pytest.mark.parametrize("levels", [None, LEVELS])
@pytest.mark.parametrize("name", METHODS)
def test_the_log_says_more_than_the_loss(name: str, levels: Any) -> None:
    """T10: the loss is near-constant at the optimum; the gap of energies, their mean and their spread are logged."""
    loss, values = one(build(METHODS[name] | {"levels": levels}))
    assert loss.dim() == 0
    assert loss.requires_grad
    assert set(values) == {"gap", "energy", "spread"}
    assert not any(v.requires_grad for v in values.values())


def test_images_train_too(tmp_path: Path) -> None:
    method = build({"name": "dcd", "estimator": "one-step", "sigma": 0.1, "levels": LEVELS}, "digits")
    state = fit(tmp_path, method)
    assert state.step == 6


def test_divergence_stops_the_run_and_keeps_its_state(tmp_path: Path) -> None:
    method = build(RANKING | {"limit": 1e-3})
    with pytest.raises(RunFailed, match=r"energies of data and negatives differ by .* more than method\.limit"):
        fit(tmp_path, method)
    assert list((tmp_path / "checkpoints" / "failed").glob("*/meta.json"))


# --- traps ------------------------------------------------------------------------------------------------------------


def naive(given: Given) -> Contrast:
    """T1: the noised datum as the negative."""
    return contrast(given.energy, given.x, given.x + 0.5 * given.noise(given.x))


def spread(net: Energy, method: Fitting) -> float:
    energies = quadrature.on_grid(net, quadrature.Box.around(method.data.x, points=80))
    return float(energies.max() - energies.min())


def kl(net: Energy, method: Fitting) -> float:
    return Showing(method, net)._plane()[0]["kl"]


def test_t1_t7_t12_a_short_fit_is_right_and_the_naive_one_is_not() -> None:
    """300 steps. Ours: energies within 200 of each other on the box, data below the box, KL falling under 0.4.

    The naive loss runs away; held by a penalty it looks tame (T12), and its KL gives it away.
    """
    method = build(RANKING | {"sigma": (0.2, 1.0)})
    before = kl(bare(method.nets["energy"]), method)
    good = steps(method, 300)
    assert spread(good, method) < 200
    found = Showing(method, good)._energies()
    assert found["energy_test"] < found["energy_box"] - 2
    ours = kl(good, method)
    assert ours < min(0.4, before / 4)

    wrong = build(RANKING)
    wrong.loss = naive
    assert spread(steps(wrong, 300), wrong) > 200

    tame = build(RANKING | {"penalty": 0.1})
    tame.loss = naive
    held = steps(tame, 300)
    assert spread(held, tame) < 200
    assert kl(held, tame) > 2 * ours


def test_t3_both_energies_have_the_same_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding a constant to E(., t) for one t changes no loss; a loss across levels moves with it without bound."""
    for name in METHODS:
        method = build(METHODS[name] | {"levels": LEVELS})
        before = float(one(method)[0].detach())
        plain = Energy.forward
        top = method.ladder[0]

        def lifted(self: Energy, x: Tensor, t: Any = None, plain: Any = plain, top: float = top) -> Tensor:
            out: Tensor = plain(self, x, t)
            return out + 100 * (torch.as_tensor(t) == torch.tensor(top)).float()

        with monkeypatch.context() as patch:
            patch.setattr(Energy, "forward", lifted)
            fresh = build(METHODS[name] | {"levels": LEVELS})
            assert float(one(fresh)[0].detach()) == pytest.approx(before, abs=2e-3), name
            energies = bare(fresh.nets["energy"])
            x = fresh.data.x[:8]
            across = (energies(x, 0.1) - energies(x, top)).mean() - (
                plain(energies, x, 0.1) - plain(energies, x, top)
            ).mean()
            assert float(across.detach()) == pytest.approx(-100, rel=1e-3)


def test_t4_a_wide_kernel_is_refused_for_one_step() -> None:
    with pytest.raises(RecipeError, match=r"method\.sigma: the kernel is .* too wide for `one-step`"):
        build({"name": "dcd", "estimator": "one-step", "sigma": 1.0})
    with pytest.raises(RecipeError, match="too wide"):
        build({"name": "dcd", "estimator": "one-step", "levels": LEVELS})


def test_t5_the_kernel_is_held_against_the_widest_gap() -> None:
    """Eight modes 1.08 apart with deviation 0.1; the figure stands in the run. One cluster has no gap to speak of."""
    method = build(RANKING | {"sigma": 0.1})
    gap = widest_gap(method.data.x[:1000])
    assert 0.3 < gap < 0.9
    assert Showing(method, bare(method.nets["energy"]))._reach() == {"sigma_over_gap": pytest.approx(0.1 / gap)}
    two = torch.cat([torch.randn(100, 2) * 0.1, torch.randn(100, 2) * 0.1 + torch.tensor([8.0, 0.0])])
    assert widest_gap(two) == pytest.approx(8 - 0.5, abs=0.4)


def test_t6_steps_of_the_posterior_s_own_size_stay_finite() -> None:
    """Kernel 3 on data whose modes have deviation 0.1: with `detail` the chains stay near; a step in tau flies off."""
    method = build(
        {"name": "dcd", "estimator": "posterior", "sigma": 3.0, "steps": 40, "detail": 0.1, "step_size": 0.5}
    )
    assert math.isfinite(kl(steps(method, 10), method))
    x = torch.full((4, 1), 1.0)
    from gentk.losses.energy import posterior

    def walk(step: float) -> float:
        gen = torch.Generator().manual_seed(0)
        z = posterior(
            lambda z: (z**2 / (2 * 0.25)).sum(1),
            x,
            9.0,
            lambda z: torch.randn(z.shape, generator=gen),
            steps=40,
            step_size=step,
        )
        return float(z.abs().max())

    assert walk(0.1 * min(9.0, 0.25)) < 3
    assert walk(0.5 * 9.0) > 1e10


def test_t11_the_exported_energy_has_its_zero_at_the_data() -> None:
    method = build(RANKING)
    with torch.no_grad():
        bare(method.nets["energy"]).body.out.bias += 1e4  # type: ignore[union-attr,operator]
    result = method.finish({"energy": method.nets["energy"]})
    net = result.exports["energy"].net
    assert float(net(method.data.x[:1000]).mean().detach()) == pytest.approx(0, abs=0.5)
    assert float(bare(method.nets["energy"]).offset) == 0, "the run's own average is left alone"
    assert {"kl", "energy_range", "energy_test", "energy_box", "sigma_over_gap", "fd"} <= set(result.metrics)
    assert json.dumps(result.exports["energy"].header)


def test_t16_data_are_dequantised_where_the_recipe_says_so() -> None:
    """Noise of the stated width, uniform: what a loss sees of constant data."""
    seen: list[Tensor] = []

    def watch(given: Given) -> Contrast:
        seen.append(given.x)
        return contrast(given.energy, given.x, given.x)

    method = build(RANKING | {"dequantise": 0.1})
    method.loss = watch
    x = torch.zeros(4000, 2)
    next(method.phases(0)).loss(Batch(4000, x), rng.generator(0))
    assert float(seen[0].abs().max()) <= 0.05
    assert float(seen[0].std()) == pytest.approx(0.1 / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize("levels", [None, (0.1, 2.0)])
def test_t17_chains_start_from_noise(levels: Any) -> None:
    """With a step too small to move, samples are noise of the stated spread about the centre: no datum is in them."""
    from gentk.nets import energy
    from gentk.recipe.networks import EnergyMlp

    data = torch.randn(500, 2) + torch.tensor([5.0, 0.0])
    net = energy.build(EnergyMlp(name="energy-mlp", width=8, depth=1), shape=(2,), levels=levels, data=data)
    kind: Any = {"levels": (2.0, 0.1)} if levels else {"kind": "ula", "start": 3.0}
    chains = Chains(net, (2,), CPU, steps=1, step_size=1e-12, longer=1, **kind)
    x = chains(3000, 0)
    expected = math.sqrt(4 + float(net.sd) ** 2) if levels else 3 * float(net.sd)
    if not levels:
        assert float(x.std(0).mean()) == pytest.approx(expected, rel=0.05)
        assert torch.allclose(x.mean(0), net.centre, atol=0.3)
    else:
        assert float((x - net.centre).std()) == pytest.approx(expected, rel=0.1)


TEXT = """\
task: train-ebm
about: a test
size: smoke
data: {name: "points:ring8"}
net: {name: energy-mlp}
method: {name: dcd}
optim: {lr: 1e-3, betas: [0, 0.99]}
train: {steps: 2, batch: 4}
"""


def test_t18_whole_numbers_among_betas_are_floats() -> None:
    recipe = loads(TEXT, source="x.yaml").recipe
    assert all(isinstance(b, float) for b in recipe.optim.betas)
    adam = optim.build(recipe.optim, [torch.nn.Parameter(torch.zeros(2))])
    adam.param_groups[0]["params"][0].grad = torch.ones(2)
    adam.step()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("method.levels={low: 2.0, high: 1.0}", "low: 2 is not below high: 1"),
        ("method.sigma=[1.0, 0.5]", "sigma: 1 is not below 0.5"),
        ("net={name: energy-unet}", "energy-unet"),
    ],
)
def test_bad_recipes_are_said(change: str, message: str) -> None:
    def made() -> None:
        recipe = loads(TEXT, source="x.yaml", sets=[change]).recipe
        registry.method_module("train-ebm", "dcd").build(recipe, CPU)

    with pytest.raises(RecipeError, match=message):
        made()


# --- persistent chains ------------------------------------------------------------------------------------------------


def test_chains_go_on_where_they_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains of the batch are replaced by where they ended, the others wait; each stays at its own noise level."""
    method = build(METHODS["pcd"] | {"levels": LEVELS, "renew": 0.0, "buffer": 60})
    memory = method.nets["energy"]
    assert isinstance(memory, Remembering)
    before, starts, levels = memory.chains.clone(), [], []

    def still(config: Any, given: Given, x: Tensor) -> Tensor:
        starts.append(x)
        levels.append(given.t)
        return x + 1000

    monkeypatch.setattr("gentk.tasks.train_ebm._chaining._chain", still)
    one(method)
    moved = (memory.chains - before).abs().sum(1) > 0
    assert int(moved.sum()) == 32
    torch.testing.assert_close(memory.chains[moved], before[moved] + 1000)
    slots = torch.cdist(starts[0], before).argmin(1)
    torch.testing.assert_close(levels[0], torch.tensor(method.ladder)[slots % 5])


def test_some_chains_start_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(METHODS["pcd"] | {"renew": 1.0, "start": 2.0, "buffer": 4000}, train={"steps": 1, "batch": 4000})
    seen: list[Tensor] = []
    monkeypatch.setattr("gentk.tasks.train_ebm._chaining._chain", lambda c, g, x: seen.append(x) or x)
    x, _ = method.data.batch(torch.arange(4000) % len(method.data))
    next(method.phases(0)).loss(Batch(4000, x), rng.generator(1))
    sd = float(bare(method.nets["energy"]).sd)
    assert float(seen[0].std()) == pytest.approx(2 * sd, rel=0.05)


def test_data_are_noised_to_their_level() -> None:
    """With levels the loss sees x + t noise, t from the ladder, all of its rungs alike."""
    seen: list[Given] = []

    def watch(given: Given) -> Contrast:
        seen.append(given)
        return contrast(given.energy, given.x, given.x)

    method = build(RANKING | {"levels": LEVELS})
    method.loss = watch
    next(method.phases(0)).loss(Batch(5000, torch.zeros(5000, 2)), rng.generator(0))
    given = seen[0]
    assert given.t is not None
    assert method.ladder == pytest.approx([2.0 * 0.05 ** (i / 4) for i in range(5)])
    for level in method.ladder:
        rows = given.t == torch.tensor(level)
        assert 0.17 < float(rows.float().mean()) < 0.23
        assert float(given.x[rows].std()) == pytest.approx(level, rel=0.05)
    block = given.energy(torch.cat([given.x, given.x]))
    assert torch.equal(block[:5000], block[5000:])


def test_the_kernel_leads_to_the_next_level() -> None:
    """sigma: null with levels: t^2 + sigma^2 is the next level's square; a number is in units of t."""
    from gentk.tasks.train_ebm._diffusing import _sigma

    for sigma, expected in ((None, math.sqrt(20 ** (2 / 4) - 1)), (0.3, 0.3)):
        method = build({"name": "dcd", "sigma": sigma, "levels": LEVELS})
        t = torch.tensor(method.ladder)
        given = Given(
            lambda z: z, bare(method.nets["energy"]), torch.zeros(5, 2), t, torch.zeros_like, rng.generator(0)
        )
        found = _sigma(method.config, given)
        torch.testing.assert_close(found, expected * t)
        if sigma is None:
            torch.testing.assert_close((t**2 + found**2).sqrt()[1:], t[:-1])


def test_settle_is_of_the_whole_batch() -> None:
    """The mean over parts of unequal length is that over all."""
    method = build(RANKING)
    net = bare(method.nets["energy"])
    x = method.data.x[:700]
    _fitting.settle(net, x)
    assert float(net(x).mean().detach()) == pytest.approx(0, abs=1e-4)
