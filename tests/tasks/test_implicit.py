"""`train implicit-kl` and `implicit-fisher`: the two networks in turn, the wait for a lagging score, resume, guards."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from gentk.cli.app import app
from gentk.engine import loop, rng
from gentk.engine.method import Batch
from gentk.engine.stop import StopRequest
from gentk.errors import RecipeError, RunFailed, Stopped
from gentk.losses import implicit
from gentk.nets.implicit import load
from gentk.recipe import registry
from gentk.recipe.schema import Ema
from gentk.tasks.train._implicit import Implicit, Push, coordinates, fisher_force
from tests.engine.tiny import Folder
from tests.tasks.toys import CPU, randomise

SMALL: dict[str, Any] = {"name": "plain", "width": 16, "depth": 2}


def build(target: Any = "normal", method: str = "implicit-kl", steps: int = 12, **own: Any) -> Implicit:
    target = {"name": target} if isinstance(target, str) else target
    section = registry.recipe_schema("train", method)(
        task="train",
        about="a test",
        size="smoke",
        target=target,
        net=SMALL,
        score_net=SMALL,
        method={"name": method, "score_steps": 2, "lag_draws": 256} | own.pop("method_", {}),
        **{"train": {"steps": steps, "batch": 64}, "measure": None} | own,
    )
    built = registry.method_module("train", method).build(section, CPU)
    assert isinstance(built, Implicit)
    return built


def fit(method: Implicit, folder: Path, *, every: int = 12, stop: StopRequest | None = None) -> loop.State:
    """All the recipe's steps, or as many as a request to stop leaves."""
    train, run = method.recipe.train.model_copy(update={"checkpoint_every": every}), Folder(folder)
    try:
        return loop.fit(
            method, train=train, average=Ema(half_life=500), seed=0, where=CPU, run=run, stop=stop or StopRequest()
        )
    finally:
        run.log.close()


def test_at_the_start_the_sampler_is_the_base_and_the_score_is_right() -> None:
    method = build("banana", method_={"scale": 3.0})
    z = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(method.sampler(z), 3 * z)
    y = z + 0.2 * torch.randn(500, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        trace, drift = implicit.stein(method.score, y)
    assert abs(float(trace.mean())) < 5 * float(trace.std()) / 500**0.5
    assert float(drift.mean(0).norm()) < 0.3
    assert not method._lags(0, 1)


def test_a_score_that_lags_makes_the_sampler_wait_and_one_that_fits_does_not() -> None:
    """S4: the phases of a step end with the sampler only where Stein's identity holds."""
    method = build(method_={"lag_rounds": 2})
    assert [p.name for p in method.phases(0)] == ["score", "score", "sampler"]
    assert method.score.held.tolist() == [0, 0]
    with torch.no_grad():
        method.sampler.net[-1].bias += 1.0  # the draws have moved, the score has not
    assert [p.name for p in method.phases(1)] == ["score"] * 4
    assert method.score.held.tolist() == [1, 1]
    never = build(method_={"lag": None})
    with torch.no_grad():
        never.sampler.net[-1].bias += 1.0
    assert [p.name for p in never.phases(1)] == ["score", "score", "sampler"]


def test_score_updates_of_one_step_have_noise_of_their_own() -> None:
    method = build()
    losses = [float(p.loss(Batch(64), rng.generator(0, 0, p.name, 0))[0].detach()) for p in list(method.phases(0))[:2]]
    assert losses[0] != losses[1]


def test_s8_the_bridge_rises_and_ends_before_the_last_thirty_percent() -> None:
    method = build(steps=100)
    lam = [method.lam(step) for step in range(100)]
    ramp = [value for value in lam if value < 1]
    assert all(a < b for a, b in itertools.pairwise(ramp))
    assert len(ramp) >= 50
    assert all(value == 1 for value in lam[70:])
    assert build(steps=100, method_={"anneal": 0.0}).lam(0) == 1
    with pytest.raises(ValueError, match="anneal"):
        build(method_={"anneal": 0.9})


def test_the_bridge_s_score_is_the_mixture_of_both() -> None:
    method = build("rosenbrock", steps=100, method_={"scale": 2.0})
    y = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    lam = method.lam(20)
    own = 2 * implicit.score_of(method.density.log_prob)(2 * y)  # the chain rule through x = 2 y
    found = method.target(20, torch.Generator())(y)
    torch.testing.assert_close(found, lam * own - (1 - lam) * y, rtol=1e-4, atol=1e-4)


def test_the_noise_falls_geometrically_after_the_bridge() -> None:
    method = build(steps=100, method_={"sigma": 0.4, "sigma_end": 0.1})
    assert method.sigma(0) == method.sigma(59) == 0.4
    assert method.sigma(80) == pytest.approx(0.2)
    assert build(steps=100, method_={"sigma": 0.4}).sigma(99) == 0.4


def test_s3_a_sampler_s_update_leaves_score_and_target_without_gradient(tmp_path: Path) -> None:
    method = build("funnel")
    randomise(method.score, 3)
    method.score.requires_grad_(False)
    for phase in method.phases(0):
        if phase.name == "sampler":
            loss, figures = phase.loss(Batch(64), torch.Generator().manual_seed(0))
            loss.backward()
    assert all(p.grad is None for p in method.score.parameters())
    assert any(p.grad is not None for p in method.sampler.parameters())
    assert {"force", "clipped", "lam"} <= set(figures)


def test_s13_forces_are_clipped_and_the_share_is_told() -> None:
    method = build("rosenbrock", method_={"scale": 5.0, "anneal": 0.0, "clip": 1.0})
    *_, phase = method.phases(0)
    _, figures = phase.loss(Batch(64), torch.Generator().manual_seed(0))
    assert float(figures["clipped"]) > 0.2
    assert float(figures["force"]) <= 1.0 + 1e-6


def test_s9_fifty_steps_move_the_sampler_towards_the_target_and_a_swapped_sign_away(tmp_path: Path) -> None:
    lr = {"sampler": {"lr": 4e-2, "betas": (0.0, 0.99)}, "score": {"lr": 1e-2, "betas": (0.9, 0.99)}}
    own: dict[str, Any] = {"optim": lr, "method_": {"anneal": 0.0, "lag": None, "score_steps": 4}}
    right, wrong = build("gaussian", steps=50, **own), build("gaussian", steps=50, **own)
    log_q = wrong.density.log_prob
    object.__setattr__(wrong.density, "log_prob", lambda x: -log_q(x))
    fit(right, tmp_path / "right")
    with contextlib.suppress(RunFailed):  # it runs away, and may be stopped for that
        fit(wrong, tmp_path / "wrong")
    z = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    aim = torch.tensor([0.5, -0.3])
    with torch.no_grad():
        off = [float((m.sampler(z).mean(0) - aim).norm()) for m in (right, wrong)]
    assert off[0] < 0.4 < float(aim.norm()) < off[1]


def test_a_run_that_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = fit(build("mog2-near"), tmp_path / "whole")
    resumed = _interrupted(tmp_path / "stopped")
    for name in ("sampler", "score"):
        for a, b in zip(whole.nets[name].state_dict().values(), resumed.nets[name].state_dict().values(), strict=True):
            assert torch.equal(a, b)


def _interrupted(folder: Path) -> loop.State:
    """Twelve steps in two processes: the first one is stopped after six."""
    stop, method = StopRequest(), build("mog2-near")
    phases = method.phases

    def watched(step: int) -> Any:
        if step == 5:
            stop.signal = 15
        return phases(step)

    method.phases = watched  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        fit(method, folder, every=3, stop=stop)
    return fit(build("mog2-near"), folder, every=3)


def test_a_sampler_that_runs_away_is_stopped() -> None:
    method = build(method_={"lag": None})
    with torch.no_grad():
        method.sampler.net[-1].bias += 5000.0
    *_, phase = method.phases(0)
    with pytest.raises(RunFailed, match="diverged"):
        phase.loss(Batch(64), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", ["denoising", "divergence"])
def test_fisher_forces_follow_kl_s_and_are_the_losses_own(form: str) -> None:
    method = build(method="implicit-fisher", method_={"form": form, "kl_first": 0.5})
    target = implicit.score_of(method.density.log_prob)
    y = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    randomise(method.score, 3)
    force = fisher_force(method.config)
    early = force(Push(method.score, target, y, 0.2, 0.4), torch.Generator().manual_seed(1))
    torch.testing.assert_close(early, implicit.kl(method.score, target, y))
    late = force(Push(method.score, target, y, 0.2, 0.6), torch.Generator().manual_seed(1))

    def by_hand(at: Tensor) -> Tensor:
        if form == "divergence":
            return implicit.fisher(method.score, target, at)
        eps = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
        return implicit.denoising_fisher(method.score, target, at, eps, 0.2)

    noised = y if form == "divergence" else y + 0.2 * torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(late, implicit.force(by_hand, noised))
    blended = fisher_force(method.config.model_copy(update={"blend": 0.25}))
    both = blended(Push(method.score, target, y, 0.2, 0.6), torch.Generator().manual_seed(1))
    torch.testing.assert_close(both, 0.25 * early + 0.75 * late)


def test_s11_posteriors_are_whitened_by_laplace_and_others_are_not() -> None:
    posterior = build("logistic:synthetic")
    middle, root = coordinates(posterior.density, posterior.config)
    assert root.shape == (15, 15)
    # in y the target's Hessian at its mode is the identity
    y = torch.zeros(15, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(
        lambda v: posterior.density.log_prob(middle.double() + (root.double() @ v)[None])[0], y
    )
    torch.testing.assert_close(hessian, -torch.eye(15, dtype=torch.float64), atol=1e-3, rtol=0)
    assert build("banana").sampler.root.shape == (2,)
    with pytest.raises(ValueError, match="whiten"):
        build(method_={"whiten": "pca"})


def test_s16_whole_numbers_from_yaml_serve_as_betas(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.replace("lr: 1e-3}", "lr: 1e-3, betas: [0, 0.99]}"))
    done = CliRunner().invoke(app, ["train", "--recipe", str(path), "--out", str(tmp_path / "run"), "--quiet"])
    assert done.exit_code == 0, done.stderr


RECIPE = """\
task: train
about: a sampler small enough for a test
size: smoke
target: {name: banana}
net: {name: plain, width: 16, depth: 2}
score_net: {name: plain, width: 16, depth: 2}
method: {name: implicit-kl, score_steps: 2, lag_draws: 128}
optim: {sampler: {lr: 1e-3}, score: {lr: 1e-3}}
ema: {half_life: 500}
train: {steps: 6, batch: 32, log_every: 2, checkpoint_every: 2, sample_every: 3}
measure: {n: 200, draws: 400, chains: 8, length: 60, rounds: 1, preview: 200}
"""


def test_the_command_leaves_a_sampler_figures_and_pictures(tmp_path: Path) -> None:
    path, folder = tmp_path / "mine.yaml", tmp_path / "run"
    path.write_text(RECIPE)
    done = CliRunner().invoke(app, ["train", "--recipe", str(path), "--out", str(folder), "--quiet", "--json"])
    assert done.exit_code == 0, done.stderr
    figures = json.loads(done.stdout)["metrics"]
    # no Stein discrepancy without a two-sample distance and the masses, each beside its null
    assert {"ksd2", "ksd2_reference", "mmd2", "mmd2_null", "sw2", "sw2_null", "mass_error", "mass_null"} <= set(figures)
    assert {"mean_error_max", "sd_ratio_min", "log_q_gap", "mala_acceptance", "ms_per_1000", "waited"} <= set(figures)
    assert (folder / "samples" / "landscape.png").stat().st_size > 5000
    assert (folder / "samples" / "samples-00000003.png").exists()
    found = load(str(folder))
    assert found.shape == (2,)
    assert found.header["target"]["name"] == "banana"
    draws = found.net(torch.zeros(3, 2))
    assert torch.equal(draws[0], draws[1])
    assert "banana" in (folder / "report.html").read_text()


def test_the_subject_of_these_methods_is_a_target(tmp_path: Path) -> None:
    assert registry.subjects("train")[0] == registry.subject("train") == registry.subject("train", "denoiser") == "data"
    assert "target" in registry.subjects("train")
    for method in ("implicit-kl", "implicit-fisher"):
        assert registry.subject("train", method) == registry.method_module("train", method).SUBJECT == "target"
        assert "target" in registry.recipe_schema("train", method).model_fields
    said = CliRunner().invoke(app, ["train", "implicit-kl", "--data", "digits"])
    assert said.exit_code == 2
    assert "works on a target" in said.stderr
    said = CliRunner().invoke(app, ["train", "implicit-kl", "--target", "bananna", "--out", str(tmp_path / "x")])
    assert said.exit_code == 2
    assert "did you mean `banana`" in said.stderr
    said = CliRunner().invoke(app, ["train", "denoiser", "--target", "banana"])
    assert said.exit_code == 2
    assert "works on a data" in said.stderr
    with pytest.raises(RecipeError, match="no score"):
        build("checkerboard")


def test_smoothing_compares_noised_draws_with_the_energy_of_as_much_noise() -> None:
    """Of N(0.5, 1) known at every noise level: the force is that of the two noised laws, and sigma must fit."""
    method = build("normal", method_={"anneal": 0.0, "sigma": 0.5, "clip": None})

    def noised(t: float) -> Any:
        return lambda x: -(x - 0.5).square().sum(1) / (2 * (1 + t * t))

    for name, value in (("noised", noised), ("levels", (0.1, 2.0))):
        object.__setattr__(method.density, name, value)
    method.smooth = True
    method._check_smooth()
    method.config = method.config.model_copy(update={"sigma": 5.0})
    with pytest.raises(RecipeError, match="must lie within the energy's levels"):
        method._check_smooth()
    method.config = method.config.model_copy(update={"sigma": 0.5})
    y = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(method.target(0, torch.Generator())(y), (0.5 - y) / 1.25)
    *_, phase = method.phases(0)
    with torch.no_grad():
        method.score.net[-1].bias.zero_()
    loss, figures = phase.loss(Batch(4096), torch.Generator().manual_seed(0))
    # S of N(0, 1.25) is exact at the start (1 / (1 + sigma^2) of its own sigma, 0.5), the target is 0.5 off:
    # u = -y / 1.25 - (0.5 - y) / 1.25 = -0.4 in each coordinate, whatever the noise
    assert float(figures["force"].detach()) == pytest.approx(2**0.5 * 0.4, rel=1e-4)
    plain = build("normal", method="implicit-kl")
    plain.smooth = True
    with pytest.raises(RecipeError, match="not known with noise"):
        plain._check_smooth()
    assert loss.requires_grad
