"""`gentk restore flowdiff`: its phases and what each moves, measurements that never change, resume, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gentk import operators
from gentk.engine.method import Batch
from gentk.losses import flowdiff as terms
from gentk.processes.denoiser import Denoiser
from gentk.recipe import load, registry, store
from gentk.restoring.flow import context, guess
from gentk.tasks.restore import _learning, _variational
from gentk.tasks.restore._corrupted import Corrupted, Moments
from gentk.tasks.restore._uncorrected import Naive
from gentk.tasks.restore._variational import FlowDiff
from tests.tasks.test_sample_evaluate import done, gentk, info, refused

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "task": "restore",
    "about": "a test",
    "size": "smoke",
    "data": {"name": "digits"},
    "operator": {"name": "inpaint"},
    "sigma": 0.1,
    "net": {"name": "unet", "width": 8, "multipliers": (1, 2), "blocks": 1},
    "flow": {"name": "glow", "levels": 2, "steps": 1, "width": 8, "features": 4},
    "method": {"name": "flowdiff", "warmup": 2, "prior_steps": 1, "finetune": 1, "repeats": 2},
    "ema": {"half_life": 100},
    "train": {"steps": 6, "batch": 8, "log_every": 1, "checkpoint_every": 3},
    "held": {"n": 6, "draws": 4, "preview": 0},
}


def recipe(**own: Any) -> Any:
    sections = {k: SMALL[k] | v if isinstance(v, dict) and k in SMALL else v for k, v in own.items()}
    return registry.recipe_schema("restore", "flowdiff")(**(SMALL | sections))


def batch(method: FlowDiff | Naive, n: int = 8) -> Batch:
    y, index = method.data.batch(torch.arange(n))
    return Batch(n, y, index)


def gen() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_measurements_never_change_and_are_the_operators() -> None:
    """Image k has one y and one mask, whatever the batch; the noise is sigma where something is kept."""
    held = Corrupted(recipe(), "train", CPU)
    y, index = held.batch(torch.tensor([3, 50, 7]))
    again, _ = held.batch(torch.tensor([7, 3]))
    assert torch.equal(y[[2, 0]], again)
    assert index.tolist() == [3, 50, 7]
    many = torch.arange(400)
    y, _ = held.batch(many)
    clean, _ = held.clean.batch(many)
    op = held.operator(many)
    kept = op(torch.ones_like(clean)) > 0
    assert float(kept.float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float((y - clean)[kept].std()) == pytest.approx(0.1, rel=0.03)
    assert float(y[~kept].abs().max()) == 0
    test = Corrupted(recipe(), "test", CPU)
    assert not torch.equal(test.operator(many[:3]).adjoint(torch.ones(3, 1, 8, 8)), op.adjoint(torch.ones_like(y))[:3])


def test_moments_are_those_of_the_clean_images() -> None:
    """Per pixel, from half of them and with the noise's variance taken off; and the guess is the Gaussian posterior."""
    held = Corrupted(recipe(sigma=0.3), "train", CPU)
    found = Moments(held, 0.3)
    clean, _ = held.clean.batch(torch.arange(len(held)))
    assert float((found.mean - clean.mean(0)).abs().max()) < 0.12  # 700 of each pixel: 4 deviations of the mean
    assert float((found.variance - clean.var(0).clamp_min(0.01)).abs().max()) < 0.15
    assert found.root is not None
    assert found.whiten is not None
    covariance = found.root @ found.root.T
    torch.testing.assert_close(covariance @ found.whiten @ found.whiten.T, torch.eye(64), rtol=0, atol=1e-3)
    # 350 images show a pair, of variance about .3 + .09 each: an entry scatters by .39 / sqrt(350), .021, or half more
    truth = clean.flatten(1).T.cov()
    assert float((covariance - truth).square().mean().sqrt()) < 0.031
    assert float((truth.diagonal().diag() - truth).square().mean().sqrt()) > 0.06  # without the pairs
    y, op, _ = held.first(5)
    base, deviation = guess(op, y, 0.3, found.mean, found.r)
    kept = op(torch.ones_like(y)) > 0
    r, mean = found.r, found.mean.expand_as(y)
    torch.testing.assert_close(base[~kept], mean[~kept])
    torch.testing.assert_close(base[kept], (mean + r**2 / (r**2 + 0.09) * (y - mean))[kept])
    torch.testing.assert_close(deviation[~kept], torch.full_like(deviation[~kept], r))
    torch.testing.assert_close(deviation[kept], torch.full_like(deviation[kept], (1 / (1 / r**2 + 1 / 0.09)) ** 0.5))
    assert isinstance(found.deviation, Tensor)
    _, own = guess(op, y, 0.3, found.mean, found.deviation)  # with each pixel's own variance
    v = found.variance.expand_as(y)
    torch.testing.assert_close(own[kept], (1 / (1 / v + 1 / 0.09)).sqrt()[kept])
    torch.testing.assert_close(own[~kept], v.sqrt()[~kept])
    told = context(op, y)
    assert torch.equal(told[:, :1], y)
    assert torch.equal(told[:, 1:] > 0, kept)


@pytest.mark.parametrize("name", ["noise", "blur", "downsample"])
def test_other_operators_have_a_guess(name: str) -> None:
    held = Corrupted(recipe(operator={"name": name}), "train", CPU)
    found = Moments(held, 0.1)
    y, op, clean = held.first(64)
    base, deviation = guess(op, y, 0.1, found.mean, found.r)
    assert base.shape == clean.shape
    assert context(op, y).shape == (64, 2, 8, 8)
    assert bool((deviation > 0).all())
    error = float((base - clean).square().mean().sqrt())
    assert error < float((operators.shown(op, y) - clean).square().mean().sqrt()) * 1.05
    assert 0.3 * error < float(deviation.mean()) < 3 * error


def test_the_schedule_and_what_every_phase_moves() -> None:
    """Warm-up: the flow. Then the denoiser. Then both. Then the denoiser. The prior is its average and nothing else."""
    method = FlowDiff(recipe(), CPU)
    names = [[phase.name for phase in method.phases(step)] for step in range(6)]
    both = ["denoiser", "flow"]
    assert names == [["warmup"], ["warmup"], ["denoiser"], both, both, ["denoiser"]]
    assert {phase.nets for step in range(6) for phase in method.phases(step)} == {("flow",), ("denoiser",)}
    for phase in method.phases(4):
        for name, net in method.nets.items():
            net.requires_grad_(name in phase.nets).zero_grad()
        loss, parts = phase.loss(batch(method), gen())
        loss.backward()
        moved = {name for name, net in method.nets.items() if any(p.grad is not None for p in net.parameters())}
        assert moved == set(phase.nets)
        assert set(parts) == ({"data", "prior", "entropy"} if phase.name == "flow" else set())


def test_an_untrained_prior_would_pull_every_pixel_to_grey() -> None:
    """Trap 6: as it begins, the denoiser is that of N(0, sd^2), whatever the data; so the flow is not told of it.

    But for the last bias, exactly: D = sd^2 / (sd^2 + s^2) x, and the bound's slope at x is
    (1 / (sd^2 + low^2) - 1 / (sd^2 + high^2)) x. The warm-up's prior has no slope at the data's mean, does not look at
    the denoiser, and the schedule teaches that first.
    """
    method = FlowDiff(recipe(method={"sigma_data": 0.5}), CPU)
    mean, prior = method.moments.mean, method.nets["prior"]
    torch.nn.init.zeros_(prior.net.out.bias)  # type: ignore[union-attr, arg-type]
    low, high, n = 0.05, 5.0, 2048
    many = mean.expand(n, *mean.shape).clone().requires_grad_()
    s, eps = terms.probes(many, 2, low, high, gen())
    terms.energy(method._prior, many, s, eps, math.log(high / low)).mean().backward()
    assert many.grad is not None
    wanted = mean * (1 / (0.25 + low**2) - 1 / (0.25 + high**2))
    torch.testing.assert_close(many.grad.sum(0), wanted, rtol=0.01, atol=1e-3)
    assert float(wanted.mean()) < -1  # digits are mostly black, -1: it pulls them up
    at = mean.clone().requires_grad_()
    terms.gaussian_energy(at[None], mean, method.moments.variance.rsqrt()).sum().backward()
    assert float(at.grad.abs().max()) == 0  # type: ignore[union-attr]
    (warm,) = method.phases(0)
    before = warm.loss(batch(method), gen())[0]
    with torch.no_grad():
        for p in method.nets["prior"].parameters():
            p.add_(0.1)
    assert torch.equal(before, warm.loss(batch(method), gen())[0])


def test_the_flows_gradient_goes_through_the_prior() -> None:
    """Trap 8: it is not silently 0, and another with the denoiser in another state."""
    method = FlowDiff(recipe(method={"lambda_data": 0.0, "lambda_entropy": 0.0}), CPU)
    phase = list(method.phases(4))[1]

    def gradient() -> Tensor:
        for name, net in method.nets.items():
            net.requires_grad_(name == "flow").zero_grad()
        phase.loss(batch(method), gen())[0].backward()
        return torch.cat([p.grad.flatten() for p in method.nets["flow"].parameters() if p.grad is not None])

    first = gradient()
    assert float(first.norm()) > 0
    with torch.no_grad():
        for p in method.nets["prior"].parameters():
            p.add_(0.1)
    assert float((gradient() - first).norm()) > 0.01 * float(first.norm())


def test_the_objective_is_the_weighted_sum_over_pixels() -> None:
    """Terms by hand, with weights that are not 1; the entropy's sign is the one that keeps draws apart (trap 1)."""
    weights = {"lambda_data": 0.5, "lambda_prior": 2.0, "lambda_entropy": 3.0}
    method = FlowDiff(recipe(method=weights), CPU)
    x = torch.randn(4, 1, 8, 8)
    y, index = method.data.batch(torch.arange(4))
    op = method.data.operator(index)
    prior, logdet = torch.rand(4), torch.randn(4)
    loss, parts = method._objective(op, y, x, prior, logdet)
    data = (y - op(x)).square().sum((1, 2, 3)) / (2 * 0.1**2)
    assert float(loss) == pytest.approx(float((0.5 * data + 2 * prior - 3 * logdet).mean()) / 64, rel=1e-5)
    assert float(parts["entropy"]) == pytest.approx(float(logdet.mean()) / 64)
    assert float(method._objective(op, y, x, prior, logdet + 1)[0]) < float(loss)


def test_the_denoiser_sees_draws_and_not_means() -> None:
    """Trap 2: two draws for one y differ by the flow's width."""
    method = FlowDiff(recipe(), CPU)
    one = batch(method)
    a = method._drawn(one, gen())[0]
    b = method._drawn(one, torch.Generator().manual_seed(1))[0]
    assert float((a - b).detach().abs().mean()) > 0.2


class Scaled(Denoiser):
    """(1 + a) E[x0 | x_t] of pixels that are N(.2, .6^2), each by itself; `a` is what it could learn."""

    def __init__(self, like: Denoiser) -> None:
        super().__init__(like.net, like.process, "edm", like.sigma_data)
        self.a = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        keep = (0.36 / (0.36 + t.square())).to(x)[:, None, None, None]
        return (1 + self.a) * (0.2 + keep * (x - 0.2))


@pytest.mark.parametrize("measured", [True, False])
def test_levels_above_the_noise_are_learned_from_what_was_measured(measured: bool) -> None:
    """The exact denoiser stays where it is whatever the flow draws; learned from an untrained flow's draws it moves.

    Forty means of 256 rows: within 4 standard errors of 0, or more than 20 away.
    """
    noise = {"name": "lognormal", "mean": 0.4, "std": 0.25}  # four deviations above sigma
    method = FlowDiff(recipe(operator={"name": "noise"}, sigma=0.5, method={"measured": measured, "noise": noise}), CPU)
    exact = Scaled(method.nets["denoiser"])
    method.nets["denoiser"] = exact
    found = []
    for k in range(40):
        own = torch.Generator().manual_seed(k)
        y = 0.2 + (0.36 + 0.25) ** 0.5 * torch.randn(256, 1, 8, 8, generator=own)
        loss, _ = method._denoising(Batch(256, y, torch.arange(256)), own)
        found.append(torch.autograd.grad(loss, exact.a)[0].detach())
    slope = torch.stack(found)
    errors = float(slope.mean().abs() / (slope.std() / len(slope) ** 0.5))
    assert (errors < 4) if measured else (errors > 20), errors


def test_the_flow_stays_in_float32() -> None:
    """Trap 9: under bf16 its draws and log-determinants are those without, to the bit; the denoiser runs in it."""
    method = FlowDiff(recipe(), CPU)
    one = batch(method)
    x, logdet, _, _ = method._drawn(one, gen())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, other, _, _ = method._drawn(one, gen())
        rough = method._prior(x, torch.full((8,), 0.5, dtype=torch.float64))
    assert torch.equal(x, y)
    assert torch.equal(logdet, other)
    assert not torch.equal(rough, method._prior(x, torch.full((8,), 0.5, dtype=torch.float64)))


def test_the_flows_prior_is_a_short_average_of_the_denoiser() -> None:
    method = FlowDiff(recipe(method={"follow": {"half_life": 100}}), CPU)
    start = [p.clone() for p in method.nets["prior"].parameters()]
    for phase in method.phases(3):
        if phase.name == "denoiser":
            with torch.no_grad():
                for p in method.nets["denoiser"].parameters():
                    p.add_(1.0)
    # two steps of the denoiser are behind it: 16 images, of which the ramp allows a half-life of 5 %
    beta = 0.5 ** (8 / min(100, 0.05 * 16))
    for p, before in zip(method.nets["prior"].parameters(), start, strict=True):
        torch.testing.assert_close(p, before + (1 - beta), rtol=1e-4, atol=1e-5)


def write(folder: Path, **own: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe(**own).model_dump(mode="json", exclude_unset=True)))
    return path


def test_a_run_stopped_between_is_the_run_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights bit for bit, the prior's too, which no optimiser moves; and everything that a run leaves."""
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, train={"sample_every": 3})
    done("restore", "--recipe", path, "--out", "whole", "--quiet")
    fit = _variational.FlowDiff._fitting
    calls: list[int] = []

    def killed(self: FlowDiff, *a: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(self, *a)

    with monkeypatch.context() as patch:
        patch.setattr(_variational.FlowDiff, "_fitting", killed)
        assert gentk("restore", "--recipe", path, "--out", "part", "--quiet").exit_code != 0
    done("restore", "--recipe", path, "--out", "part", "--quiet")
    for name in ("flow", "prior"):
        a, b = (load_file(f"{run}/export/{name}.safetensors") for run in ("whole", "part"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    figures = info(Path("whole"))["metrics"]
    assert {"psnr_mean", "psnr_draw", "psnr_measured", "coverage_90", "pairs_never_seen"} <= set(figures)
    assert figures["pairs_never_seen"] == 0
    assert Path("whole/samples/restored.png").exists()
    rows = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row}
    assert {"warmup/data", "warmup/entropy", "flow/data", "flow/prior", "flow/entropy", "denoiser/loss"} <= names
    done("sample", "heun", "--model", "whole/export/prior.safetensors", "-n", 4, "--nfe", 5, "--out", "drawn")
    flow = ("restore", "flow", "--model", "whole/export/flow.safetensors", "-n", 3, "--draws", 4)
    done(*flow, "--operator", "inpaint", "--sigma", 0.1, "--out", "one-pass")
    result = json.loads(Path("one-pass/result.json").read_text())
    assert result["figures"]["nfe"] == 1
    assert result["figures"]["misfit_over_sigma"] < 20
    assert {p.name for p in Path("one-pass/restored").iterdir()} == {f"{k:06d}.png" for k in range(3)}
    refused(2, "has learned to undo 0.1, not 0.2", *flow, "--operator", "inpaint", "--sigma", 0.2, "--out", "other")
    refused(2, "has learned to undo", *flow, "--operator", "noise", "--sigma", 0.1, "--out", "other")


def test_it_is_judged_on_what_it_has_not_seen() -> None:
    """Trap 10: figures are of held-out images with measurements of their own, none of them among the training's."""
    method = FlowDiff(recipe(), CPU)
    y, _, truth = method.test.first(200)
    seen = {row.numpy().tobytes() for row in method.data.clean.batch(torch.arange(len(method.data)))[0]}
    assert not any(row.numpy().tobytes() in seen for row in truth)
    assert (method.data.split, method.test.split) == ("train", "test")
    figures, _ = method._restored(method.nets["flow"], 200)
    draws_apart = figures["rmse_draw"] ** 2 / figures["rmse_mean"] ** 2
    assert draws_apart > 1.2  # a draw carries the posterior's variance once more than the mean does
    assert figures["rmse_measured"] == pytest.approx(float((y - truth).square().mean().sqrt()), rel=1e-4)


def test_what_is_refused_and_what_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(2, "sigma: 0: the likelihood divides by it", "restore", "--recipe", write(tmp_path, sigma=0.0))
    steps = write(tmp_path, train={"steps": 3})
    refused(2, "the two would never meet", "restore", "--recipe", steps, "--out", "run")
    assert "never seen" in " ".join(_learning.warnings(recipe(operator={"name": "box"})))
    assert _learning.warnings(recipe()) == []


def test_a_sigma_that_the_data_contradict_is_said() -> None:
    """Trap 3: believed .9 where the measurements, of noise .1, vary by less in some direction."""
    held = Corrupted(recipe(operator={"name": "noise"}, sigma=0.3), "train", CPU)
    assert _learning._sigma(held) == []

    class Believed:
        recipe = recipe(operator={"name": "noise"}, sigma=0.9)
        first = staticmethod(held.first)

    (line,) = _learning._sigma(Believed())  # type: ignore[arg-type]
    assert "sigma: 0.9 is too large" in line


@pytest.mark.parametrize("see", ["measured", "clean"])
def test_the_baseline_takes_measurements_for_images(see: str) -> None:
    """Its one denoiser sees y itself, or the clean images for the bound."""
    section = {"task": "restore", "about": "a test", "size": "smoke", "method": {"name": "naive", "see": see}}
    own = {k: v for k, v in SMALL.items() if k not in section}
    method = Naive(registry.recipe_schema("restore", "naive")(**(own | section)), CPU)
    one = batch(method, 4)
    wanted = one.x if see == "measured" else method.data.clean.batch(torch.arange(4))[0]
    assert torch.equal(method.seen(one), wanted)
    (phase,) = method.phases(0)
    loss, _ = phase.loss(one, gen())
    loss.backward()
    assert all(p.grad is not None for p in method.nets["denoiser"].parameters())


def test_points_have_a_flow_of_their_own() -> None:
    """Four modes in the plane: phases run, the guess is the Gaussian posterior, distances by name at the end."""
    path = next(e.path for e in store.recipes() if e.name == "restore/flowdiff/points-cross4")
    few = ["data.points=300", "held.n=20", "held.draws=4", "measure.n=50", "measure.steps=3"]
    method = FlowDiff(load.load(path, few).recipe, CPU)
    assert float(method.moments.mean.abs().max()) < 0.3
    assert method.moments.r == pytest.approx((2**2 / 2 + 0.2**2) ** 0.5, rel=0.1)  # the noise's variance is taken off
    for phase in method.phases(600):
        loss, parts = phase.loss(batch(method), gen())
        loss.backward()
        assert all(bool(torch.isfinite(part)) for part in parts.values())
