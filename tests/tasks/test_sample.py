"""`gentk sample` as users run it: seeds, budgets, files, stops, comparisons, chains, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gentk.engine import rng
from gentk.processes.denoiser import Denoiser
from gentk.recipe import registry
from gentk.tasks.sample import _drawing
from tests.tasks.test_sample_evaluate import done, info, refused
from tests.tasks.toys import FLOW, VE, write_teacher

STOCHASTIC = ("--recipe", "sample/sa-solver/edm-digits", "--set", "method.tau=1.0")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return write_teacher(tmp_path / "m.safetensors", process=VE)


def samples(folder: Path) -> np.ndarray:  # type: ignore[type-arg]
    return np.load(folder / "samples.npz")["samples"]


# --- seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["ancestral", "sa-solver", "dpmpp-2m-sde", "edm-stochastic"])
def test_sample_k_is_the_same_in_every_batch(solver: str, teacher: Path, tmp_path: Path) -> None:
    """Their own noise is keyed by sample, too. Rounding differs with the batch's size, no more."""
    words = ["sample", solver, "--model", teacher, "--nfe", 11]
    words += ["--set", "method.tau=1.0"] if solver == "sa-solver" else []
    whole = samples_of(*words, "--seeds", "0-23")
    for batch in (1, 7):
        parts = samples_of(*words, "--seeds", "0-23", "--set", f"batch={batch}")
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-4)
    np.testing.assert_allclose(samples_of(*words, "--seeds", "5-9"), whole[5:10], rtol=0, atol=1e-4)
    assert np.abs(whole[:12] - whole[12:]).max() > 0.1
    assert np.abs(samples_of(*words, "--seeds", "0-23", "--seed", 1) - whole).max() > 0.1


def samples_of(*words: object) -> np.ndarray:  # type: ignore[type-arg]
    out = Path(f"run-{len(list(Path().glob('run-*')))}")
    done(*words, "--out", out)
    return samples(out)


def test_streams_depend_on_sample_and_call_alone() -> None:
    x = torch.zeros(6, 3, 2)
    noise = rng.streams(4, 10, 6, purpose="solver")
    first, second = noise(x), noise(x)
    tail = rng.streams(4, 13, 3, purpose="solver")
    assert torch.equal(tail(x[:3]), first[3:])
    assert torch.equal(tail(x[:3]), second[3:])
    assert not torch.equal(first, second)
    assert not torch.equal(rng.streams(4, 10, 6, purpose="chain")(x), first)
    z = rng.streams(0, 0, 2000, purpose="solver")(torch.zeros(2000, 50))
    assert abs(float(z.mean())) < 5 / 100_000**0.5
    assert abs(float(z.var()) - 1) < 5 * (2 / 100_000) ** 0.5


@pytest.mark.parametrize("seeds", ["5-3", "a", "-1-4", "1,2"])
def test_seeds_that_are_no_range(seeds: str, teacher: Path) -> None:
    refused(2, "not a range", "sample", "heun", "--model", teacher, f"--seeds={seeds}")


def test_seeds_and_n_are_one_too_many(teacher: Path) -> None:
    refused(2, "both say how many", "sample", "heun", "--model", teacher, "--seeds", "0-3", "-n", 4)


# --- budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "nfe"),
    [
        (("heun",), 19),  # 2 steps - 1 within 20
        (("euler",), 20),
        (("ddim",), 20),
        (("dpmpp-3m",), 20),
        (("unipc",), 20),
        (("sa-solver",), 20),
        (("sa-solver", "--set", "method.evaluate=pece"), 19),
        (("sa-solver", "--set", "method.mode=more"), 20),
        (("edm-stochastic",), 19),
        (("euler", "--set", "grid.to_zero=false"), 20),
    ],
)
def test_nfe_is_a_budget(words: tuple[str, ...], nfe: int, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, forward = [], Denoiser.forward
    monkeypatch.setattr(Denoiser, "forward", lambda self, *a: (seen.append(1), forward(self, *a))[1])
    done("sample", *words, "--model", teacher, "-n", 3, "--nfe", 20, "--out", "run")
    assert info(Path("run"))["metrics"]["nfe"] == len(seen) == nfe


def test_guidance_is_paid_where_it_acts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_teacher(tmp_path / "c.safetensors", process=VE, classes=3)
    seen, forward = [], Denoiser.forward
    monkeypatch.setattr(Denoiser, "forward", lambda self, *a: (seen.append(1), forward(self, *a))[1])
    words = ("sample", "euler", "--model", path, "-n", 3, "--set", "guidance=2", "--out", "run")
    grid = ("--set", "grid={name: given, sigmas: [10, 5, 2, 1, 0.5]}", "--set", "guidance_interval=[1.0, 5.0]")
    done(*words, *grid)
    assert info(Path("run"))["metrics"]["nfe"] == len(seen) == 8


def test_a_given_grid_needs_its_own_number(teacher: Path) -> None:
    grid = ("--set", "grid={name: given, sigmas: [10, 5, 1]}")
    assert "3 NFE each" in done("sample", "euler", "--model", teacher, *grid, "--dry-run").stdout
    refused(2, "nfe: 2 is too few: the given grid needs 3", "sample", "euler", "--model", teacher, *grid, "--nfe", 2)


@pytest.mark.parametrize("nfe", ["0", "x", "5,10", "1.5"])
def test_nfe_that_is_no_number(nfe: str, teacher: Path) -> None:
    refused(2, "--nfe", "sample", "heun", "--model", teacher, "--nfe", nfe)


def test_one_step_takes_one(tmp_path: Path) -> None:
    refused(2, "makes one evaluation", "sample", "one-step", "--nfe", 5, "--dry-run")
    done("sample", "one-step", "--nfe", 1, "--dry-run")


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("{name: given, sigmas: [1, 2, 3]}", "do not decrease"),
        ("{name: given, sigmas: [100, 1]}", "80"),
        ("{name: karras, sigma_max: 100}", "80"),
        ("{name: karras, sigma_min: 3, sigma_max: 2}", "is not below"),
        ("{name: trailing}", "timesteps"),
        ("{name: given, sigmas: [-1]}", "sigmas"),
    ],
)
def test_grids_that_cannot_be(grid: str, said: str, teacher: Path) -> None:
    refused(2, said, "sample", "heun", "--model", teacher, "--set", f"grid={grid}", "--dry-run")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("method.tau=-1", "tau"),
        ("method.tau=[[1.0, 2.0, 1.0]]", "tau"),
        ("method.predictor=5", "predictor"),
        ("method.corrector=-1", "corrector"),
        ("guidance_interval=[2.0, 1.0]", "guidance"),
    ],
)
def test_settings_out_of_range(key: str, said: str, tmp_path: Path) -> None:
    path = write_teacher(tmp_path / "c.safetensors", process=VE, classes=3)
    refused(2, said, "sample", "sa-solver", "--model", path, "--set", "guidance=2", "--set", key, "--dry-run")


# --- failures and stops -----------------------------------------------------------------------------------------------


def test_a_model_that_gives_nan_is_told_with_the_call(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, forward = [], Denoiser.forward

    def poisoned(self: Denoiser, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        calls.append(t)
        return forward(self, x, t, cond) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(Denoiser, "forward", poisoned)
    words = ("sample", "dpmpp-2m", "--model", teacher, "--seeds", "10-14", "--nfe", 6, "--out", "run")
    refused(1, "samples 10 to 14: the model's output is not finite at call 4 of 6, noise level", *words)


def test_a_stopped_job_keeps_its_batches(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the fourth batch of six: three are kept, the answer is that of the undisturbed run, bit for bit."""
    words = ("sample", *STOCHASTIC, "--model", teacher, "-n", 24, "--set", "batch=4", "--nfe", 6)
    done(*words, "--out", "whole")
    real, calls = _drawing.draw, []

    def interrupted(*args: object, **own: object) -> Tensor:
        calls.append(own["first"])
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **own)  # type: ignore[arg-type]

    monkeypatch.setattr(_drawing, "draw", interrupted)
    refused(75, "stopped by SIGTERM", *words, "--out", "run")
    part = sorted(Path("run/parts").glob("*.safetensors"))
    assert [p.stem for p in part] == ["00000000", "00000004", "00000008"]
    part[1].write_bytes(part[1].read_bytes()[:40])  # damaged since: drawn again
    calls[:] = [None] * 5
    done(*words, "--out", "run", "--resume")
    assert calls[5:] == [4, 12, 16, 20]
    assert np.array_equal(samples(Path("run")), samples(Path("whole")))
    assert not Path("run/parts").exists()


def test_batches_of_another_recipe_do_not_count(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that failed before its end may be taken over by another recipe; its parts must not be."""
    monkeypatch.setattr(_drawing, "write", lambda *args: (_ for _ in ()).throw(ValueError("a bug")))
    from typer.testing import CliRunner

    from gentk.cli.app import app

    words = ["sample", "heun", "--model", str(teacher), "-n", "4", "--out", "run", "--nfe", "5"]
    assert isinstance(CliRunner().invoke(app, words).exception, ValueError)
    assert list(Path("run/parts").iterdir())
    monkeypatch.undo()
    os.chdir(teacher.parent)
    done(*words, "--seed", 3)
    done(*words[:-3], "fresh", *words[-2:], "--seed", 3)
    assert np.array_equal(samples(Path("run")), samples(Path("fresh")))


# --- files ------------------------------------------------------------------------------------------------------------


def test_every_format_holds_the_same_samples(tmp_path: Path) -> None:
    from PIL import Image

    path = write_teacher(tmp_path / "u.safetensors", process=FLOW, classes=2, name="unet", width=8, multipliers=(1,))
    save = "save=[npz, safetensors, png, grid]"
    done("sample", "euler", "--model", path, "--seeds", "3-8", "--nfe", 4, "--set", save, "--out", "run")
    want = samples(Path("run"))
    stored = load_file("run/samples.safetensors")
    assert np.array_equal(stored["samples"].numpy(), want)
    assert stored["labels"].tolist() == [1, 0, 1, 0, 1, 0]
    for k in range(3, 9):
        assert np.array_equal(np.asarray(Image.open(f"run/png/{k:06d}.png")), want[k - 3, 0])
    made = json.loads(Path("run/samples.json").read_text())
    assert (made["seed"], made["first"], made["n"], made["nfe"]) == (0, 3, 6, 4)
    assert made["solver"] == {"name": "euler"}
    assert made["noise_levels"][-1] == 0
    assert made["inputs"].keys() == {str(path)}


def test_points_have_no_png(teacher: Path) -> None:
    refused(2, "points have no PNG form", "sample", "heun", "--model", teacher, "--set", "save=[png]")


SOLVERS = [m for m in registry.methods("sample") if registry.method_module("sample", m).KIND in ("denoiser", "target")]


@pytest.mark.parametrize("solver", SOLVERS)  # the other kinds have tests of their own
def test_every_method_has_its_solver_and_a_recipe_that_runs(solver: str) -> None:
    words = ("-n", 4) if registry.method_module("sample", solver).KIND == "denoiser" else ("--set", "method.warmup=20")
    done("sample", solver, *words, "--out", "run", "--quiet")
    assert info(Path("run"))["status"] == "done"


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_comparison(teacher: Path) -> None:
    words = ("sample", "--compare", "heun,euler,ancestral", "--nfe", "4,399", "--model", teacher)
    small = ("--set", "n=8", "--set", "method.features=null", "--set", "method.exact_n=4", "--out", "cmp")
    result = done(*words, *small)
    assert result.stdout.startswith("| solver | NFE |")
    rows = json.loads(Path("cmp/table.json").read_text())["rows"]
    assert [(r["solver"], r["nfe"]) for r in rows] == [
        ("heun", 3), ("heun", 399), ("euler", 4), ("euler", 399), ("ancestral", 4), ("ancestral", 399)
    ]  # fmt: skip
    errors = {(r["solver"], r["budget"]): r["error"] for r in rows}
    assert 0 < errors["euler", 399] < errors["euler", 4]
    assert errors["heun", 399] == 0  # it is the fine solution
    assert errors["ancestral", 4] is None
    assert Path("cmp/samples/compare.png").stat().st_size > 10_000
    metrics = info(Path("cmp"))["metrics"]
    assert metrics["error_heun_4"] == errors["heun", 4] > 0
    assert "error_ancestral_4" not in metrics
    assert done(*words, *small).stdout == result.stdout  # finished: answered from the folder


def test_comparison_goes_on_where_it_stopped(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gentk.tasks.sample import _comparing

    words = ("sample", "--compare", "euler,heun", "--nfe", "3,5", "--model", teacher, "--set", "n=6", "--out", "cmp")
    words += ("--set", "method.features=null", "--set", "method.exact_n=3")
    real, made = _comparing._cell, []

    def cell(*args: object) -> dict[str, object]:
        if len(made) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        made.append(1)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(_comparing, "_cell", cell)
    refused(75, "stopped", *words)
    made[:] = [1] * 3
    done(*words)
    assert len(made) == 3 + 2
    assert len(json.loads(Path("cmp/table.json").read_text())["rows"]) == 4


def test_comparison_measures_the_frechet_distance() -> None:
    words = ("sample", "--compare", "heun", "--nfe", "5,19", "--set", "n=100", "--set", "method.exact_n=2")
    done(*words, "--out", "cmp")
    metrics = info(Path("cmp"))["metrics"]
    assert metrics["fd_heun_19"] < metrics["fd_heun_5"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--compare", "huen"), "did you mean `heun`"),
        (("--compare", "one-step"), "not a solver for diffusion models"),
        (("--compare", "mala"), "not a solver for diffusion models"),
        (("compare", "--set", "method.solvers=[{name: ddim, eta: 2.0}]"), "ddim: eta"),
        (("heun", "--compare", "euler"), "one too many"),
        (("compare", "--set", "method.solvers=[]"), "at least 1"),
    ],
)
def test_comparisons_that_cannot_be(words: tuple[str, ...], said: str) -> None:
    refused(2, said, "sample", *words, "--dry-run")


# --- densities --------------------------------------------------------------------------------------------------------


def test_chains_reach_their_density() -> None:
    """HMC on a Gaussian: moments within 5 standard errors by the effective sample size that it reports itself."""
    done("sample", "hmc", "--model", "targets:gaussian", "-n", 4000, "--set", "method.thin=2", "--out", "run")
    x, figures = torch.from_numpy(samples(Path("run"))).double(), info(Path("run"))["metrics"]
    from gentk import targets

    exact = targets.find("gaussian").sample(200_000, torch.Generator().manual_seed(0)).double()
    assert 0.6 < figures["acceptance"] < 0.95
    assert figures["r_hat"] < 1.02
    assert ((x.mean(0) - exact.mean(0)).abs() < 5 * exact.std(0) * (1 / figures["ess"] + 1 / 200_000) ** 0.5).all()
    assert ((x.var(0) / exact.var(0) - 1).abs() < 5 * (4 / figures["ess"]) ** 0.5).all()


def test_the_same_chains_again() -> None:
    words = ("sample", "mala", "--model", "targets:ring8", "-n", 300, "--set", "method.warmup=50")
    a, b = samples_of(*words), samples_of(*words)
    assert np.array_equal(a, b)
    assert a.shape == (300, 2)
    assert not np.array_equal(samples_of(*words, "--seed", 1), a)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("mala", "--model", "edm-digits"), 2, "is not a density"),
        (("mala", "--model", "targets:bananna"), 2, "did you mean `banana`"),
        (("hmc", "--model", "targets:checkerboard"), 2, "no score"),
        (("ula", "--nfe", "5"), 2, "nfe: means nothing"),
        (("ula", "--set", "guidance=2.0"), 2, "guidance: means nothing"),
        (("hmc", "--set", "save=[png]"), 2, "no PNG form"),
        (("heun", "--model", "targets:banana"), 2, "is a density"),
    ],
)
def test_densities_and_models_are_not_mixed_up(words: tuple[str, ...], code: int, said: str) -> None:
    refused(code, said, "sample", *words, "--dry-run")
