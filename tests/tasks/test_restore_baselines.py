"""The baselines that learn from measurements: EM's rounds on Gaussians and digits, Ambient's masks, their runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gentk.engine.method import Batch
from gentk.operators import Operator
from gentk.operators.composed import Dense
from gentk.operators.identity import Identity
from gentk.recipe import registry
from gentk.tasks.restore import _rounds
from gentk.tasks.restore._corrupted import Moments
from gentk.tasks.restore._further import Ambient, walked
from gentk.tasks.restore._rounds import Em, expectation, gaussian, levels_of
from tests.restoring.gaussian import BLUR, S, denoiser, law
from tests.tasks.test_restore_flowdiff import SMALL
from tests.tasks.test_sample_evaluate import done, gentk, info, refused

CPU = torch.device("cpu")
EYE = torch.eye(2, dtype=torch.float64)


def recipe(kind: str, **own: Any) -> Any:
    sections = {k: SMALL[k] | v if isinstance(v, dict) and k in SMALL and k != "method" else v for k, v in own.items()}
    sections["method"] = {"name": kind} | sections.get("method", {})
    return registry.recipe_schema("restore", kind)(**(SMALL | sections))


def gen() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# EM's step with its own draws, in closed form


def step(c: Tensor, h: Tensor, sigma: float, n: int, *, believed: float | None = None, means: bool = False) -> Tensor:
    """The covariance of the draws that a round with the exact denoiser of N(0, c) makes of all y: no sampling."""
    op: Operator = Identity((2,)) if torch.equal(h, EYE) else Dense(h, (2,), (2,))
    model = sigma if believed is None else believed
    levels = list(levels_of(op, model, n, 0.002, 40.0))

    def draw(denoise: Any, op: Operator, y: Tensor, sigma: float, x: Tensor, levels: Any, noise: Any) -> Tensor:
        return expectation(denoise, op, y, sigma, levels, noise, solves=2)

    found = [law(draw, op, y, model, levels, denoise=denoiser(c)) for y in EYE]
    gain, spread = torch.stack([mean for mean, _ in found], 1), found[0][1]
    through = gain @ (h @ S @ h.T + sigma**2 * EYE) @ gain.T
    return through if means else through + spread


def fixed(h: Tensor, sigma: float, n: int, rounds: int, **own: Any) -> Tensor:
    c = 1.5 * EYE
    for _ in range(rounds):
        c = step(c, h, sigma, n, **own)
    return c


@pytest.mark.parametrize("h", [EYE, BLUR], ids=["noise", "blur"])
def test_a_round_is_the_step_of_em(h: Tensor) -> None:
    """C <- K S_y K^T + C - K H C, within 5 % at 100 levels; with twice as many levels the error halves."""
    c = torch.tensor([[1.5, 0.2], [0.2, 0.8]], dtype=torch.float64)
    y = h @ S @ h.T + 0.25 * EYE
    k = c @ h.T @ torch.linalg.inv(h @ c @ h.T + 0.25 * EYE)
    wanted = k @ y @ k.T + c - k @ h @ c
    off = [float((step(c, h, 0.5, n) - wanted).abs().max() / wanted.abs().max()) for n in (100, 200)]
    assert off[0] < 0.05
    assert off[1] < 0.6 * off[0]


@pytest.mark.parametrize("h", [EYE, BLUR], ids=["noise", "blur"])
def test_rounds_end_at_the_covariance_of_most_likelihood(h: Tensor) -> None:
    """H C H^T + sigma^2 = S_y has the one solution C = S: from measurements alone, at the draws' accuracy."""
    found = [fixed(h, 0.3, n, 8) for n in (30, 60)]
    off = [float((c - S).abs().max()) for c in found]
    assert off[1] < 0.1
    assert off[1] < 0.65 * off[0]


def test_rounds_of_means_shrink_it() -> None:
    """Trap 2: with E[x | y] for a draw every eigenvalue v ends where (c + sigma^2)^2 = c (v + sigma^2), below v."""
    found = torch.linalg.eigvalsh(fixed(EYE, 0.3, 80, 25, means=True))
    for c, v in zip(found.tolist(), (0.3, 1.7), strict=True):
        wanted = (v - 0.09 + ((v - 0.09) ** 2 - 4 * 0.09**2) ** 0.5) / 2
        assert c == pytest.approx(wanted, rel=0.05)
    assert float(found[0]) < 0.2  # the truth is .3


@pytest.mark.parametrize(("believed", "wanted"), [(0.2, 0.35), (0.4, 0.23)])
def test_rounds_with_a_wrong_sigma(believed: float, wanted: float) -> None:
    """Trap 3: every eigenvalue moves by sigma^2 - believed^2; here the smaller one, .3."""
    found = torch.linalg.eigvalsh(fixed(EYE, 0.3, 80, 25, believed=believed))
    assert float(found[0]) == pytest.approx(wanted, abs=0.03)


# on digits


def test_the_first_round_is_the_gaussian_posterior() -> None:
    """Matheron's rule: mean and covariance of many draws for one half-hidden digit, the pixels correlated."""
    method = Em(recipe("em", sigma=0.3), CPU)
    moments, n = Moments(method.held, 0.3), 2000
    assert moments.root is not None
    index = torch.zeros(1, dtype=torch.long)
    y, op = method.held.batch(index)[0].expand(n, -1, -1, -1), method.held.operator(index)
    noise = gen()
    x = gaussian(op, y, 0.3, moments, lambda like: torch.randn(like.shape, generator=noise)).flatten(1)
    h = torch.diag(op(torch.ones(1, 1, 8, 8)).flatten())
    c = moments.root @ moments.root.T
    k = c @ h @ torch.linalg.inv(h @ c @ h + 0.09 * torch.eye(64))
    mean, wanted = moments.mean.flatten() + k @ (y[0].flatten() - h @ moments.mean.flatten()), c - k @ h @ c
    sd = wanted.diagonal().sqrt()
    assert float(((x.mean(0) - mean) / (sd / n**0.5)).abs().max()) < 4.5
    assert float(((x.T.cov() - wanted) / (sd[:, None] * sd)).abs().max()) < 5.5 * (2 / n) ** 0.5


@pytest.mark.parametrize("name", ["noise", "inpaint", "blur"])
def test_draws_agree_with_their_measurements(name: str) -> None:
    """Of a first round: |y - H x| is sigma, as for the truth, where the prior is wide; by every kind of operator."""
    method = Em(recipe("em", operator={"name": name}, method={"pool": 200}), CPU)
    torch_rows = torch.randperm(len(method.held), generator=_rounds.rng.generator(0, "round", 0))[:200]
    x = method.drawn(0)
    y, op = method.held.batch(torch_rows)[0], method.held.operator(torch_rows)
    seen = op.seen(torch.ones_like(y))
    misfit = float(((y - op(x)).square().sum() / seen.sum()).sqrt())
    assert 0.05 < misfit < 0.15


def test_a_rounds_teacher_is_the_average_at_its_start() -> None:
    method = Em(recipe("em", method={"every": 2, "pool": 8, "levels": 3}), CPU)
    batch = Batch(8)
    pools = []
    for step_ in range(4):
        for phase in method.phases(step_):
            assert phase.nets == ("denoiser",)
            with torch.no_grad():
                for p in method.nets["denoiser"].parameters():
                    p.add_(0.1)
            loss, parts = phase.loss(batch, gen())
            assert bool(torch.isfinite(loss))
            assert float(parts["variance"]) > 0
        pools.append(method.pool)
        teacher, average = (next(method.nets[name].parameters()) for name in ("teacher", "average"))
        assert torch.equal(teacher, average) is False
    assert pools[0] is pools[1]
    assert pools[2] is pools[3]
    assert not torch.equal(pools[0], pools[2])


# runs


def write(folder: Path, kind: str, **own: Any) -> Path:
    path = folder / f"{kind}.yaml"
    path.write_text(json.dumps(recipe(kind, **own).model_dump(mode="json", exclude_unset=True)))
    return path


def test_em_stopped_within_a_round_is_em_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint holds the teacher, not the draws: the resumed run makes the same again, weights bit for bit."""
    monkeypatch.chdir(tmp_path)
    own = {"every": 2, "pool": 6, "levels": 3, "solves": 1}
    path = write(tmp_path, "em", method=own, train={"steps": 6, "checkpoint_every": 3, "batch": 4})
    done("restore", "--recipe", path, "--out", "whole", "--quiet")
    loss, calls = Em._loss, []

    def killed(self: Em, *a: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(self, *a)

    with monkeypatch.context() as patch:
        patch.setattr(Em, "_loss", killed)
        assert gentk("restore", "--recipe", path, "--out", "part", "--quiet").exit_code != 0
    done("restore", "--recipe", path, "--out", "part", "--quiet")
    a, b = (load_file(f"{run}/export/prior.safetensors") for run in ("whole", "part"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    done("sample", "heun", "--model", "whole/export/prior.safetensors", "-n", 2, "--nfe", 5, "--out", "drawn")


@pytest.mark.parametrize("name", ["inpaint", "noise"])
def test_ambient_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is on what was measured, its samples begin with masks of training, and no other command takes it."""
    monkeypatch.chdir(tmp_path)
    section = {"features": "classifier-digits", "n": 20, "preview": 0, "steps": 3, "k": 3}
    path = write(tmp_path, "ambient", operator={"name": name}, train={"steps": 2}, measure=section)
    done("restore", "--recipe", path, "--out", "run", "--quiet")
    figures = info(Path("run"))["metrics"]
    assert {"fd", "psnr_mean"} <= set(figures)
    assert figures["nfe"] == 2 * 2 + 1
    model = ("--model", "run/export/prior.safetensors")
    refused(2, "is a ambient, here a", "sample", "heun", *model, "-n", 2, "--out", "drawn")


def test_ambients_samples_keep_their_masks_and_end_at_sigma() -> None:
    method = Ambient(recipe("ambient", sigma=0.3), CPU)
    masks = method.masks(0, 300, 0)
    assert torch.equal(masks[4:6], method.masks(4, 2, 0))
    share = float(masks.mean())
    assert abs(share - 0.5 * 0.9) < 4 * (0.25 / 300 / 64) ** 0.5  # half is kept, a tenth of that hidden
    sampler = method._sampler(method.nets)
    assert sampler.levels[-2:] == (0.3, 0.0)
    x = sampler(3, 0)
    assert torch.equal(x[1:], torch.cat([sampler.part(1, 2, 0)]))


def test_points_need_no_mask() -> None:
    """Noise alone: the network is the naive one's, its samples are points, and rmse is the figure of the end."""
    points = {"name": "points:ring8", "points": 300}
    net, noise = {"name": "mlp", "width": 8, "blocks": 1}, {"name": "noise"}
    sections = SMALL | {"data": points, "operator": noise, "net": net, "method": {"name": "ambient"}}
    method = Ambient(registry.recipe_schema("restore", "ambient")(**sections), CPU)
    y, index = method.data.batch(torch.arange(8))
    (phase,) = method.phases(0)
    assert bool(torch.isfinite(phase.loss(Batch(8, y, index), gen())[0]))
    result = method.finish(method.nets)
    assert {"rmse_mean"} == set(result.metrics)
    assert method._sampler(method.nets)(3, 0).shape == (3, 2)


def test_walking_down_to_sigma_is_the_exact_flow() -> None:
    """On N(0, 1): x_t / sqrt(1 + t^2) does not change, and the end is the mean given x_sigma."""
    levels = (*torch.linspace(10.0, 0.3, 200, dtype=torch.float64).tolist(), 0.0)
    x = torch.tensor([[10.0]], dtype=torch.float64)
    found = walked(lambda x, s: x / (1 + s**2), x, levels)
    there = 10 * (1.09 / 101) ** 0.5
    assert float(found) == pytest.approx(there / 1.09, rel=2e-3)


def test_ambient_refuses_what_it_cannot_learn_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "ambient", operator={"name": "blur"})
    refused(2, "`ambient` learns from masked or noisy samples, not from `blur`", "restore", "--recipe", path)
