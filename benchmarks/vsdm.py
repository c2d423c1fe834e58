"""VSDM against plain diffusion, by parts; each writes FOLDER/PART.json and prints its tables. Resumable, seed by seed.

    python benchmarks/vsdm.py points  [--out FOLDER] [--seeds 1]     spiral and checkerboard at 6, 8, 10, 20 NFE
    python benchmarks/vsdm.py digits  [--out FOLDER]                 FD at 10, 20, 50 NFE, beside edm-digits
    python benchmarks/vsdm.py series  [--out FOLDER] [--seeds 3]     CRPS-Sum on exchange rate and ETTh1 (GENTK_DATA)
    python benchmarks/vsdm.py held_out [--out FOLDER] [--seeds 3]    the same, length and sampler by the windows before
    python benchmarks/vsdm.py forms   [--out FOLDER]                 time and memory of the three forms of A over d

Every model is trained by the shipped recipe of its data set; `dsm` is the same with `stages: 0, start: zero`, so that A
stays 0 and all else is equal: network, preconditioning, updates, seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gentk import data
from gentk.engine.linear import LinearSampler, backward
from gentk.engine.paths import followed, paths_picture, straightness
from gentk.engine.pictures import save
from gentk.metrics.points import sliced_wasserstein
from gentk.processes.grids import build
from gentk.processes.models import load
from gentk.recipe.schema import Data, TimeGrid

CPU = torch.device("cpu")
PLAIN = ["method.stages=0", "method.start=zero"]
STEPS = ["train.sample_every=0", "measure.n=1000"]
POINTS = ("points:spiral-8y", "points:checkerboard-6x")
MODELS = {
    "vsdm beta 10": [],
    "vsdm beta 10, zeta .75": ["method.zeta=0.75"],
    "dsm beta 10": PLAIN,
    "dsm beta 20": [*PLAIN, "method.betas.beta_max=20.0"],
}
BUDGETS = (6, 8, 10, 20, 40)
PRIORS = ("exact", "standard", "kernel")
N = 3_000


def gentk(*words: str) -> dict[str, Any]:
    """A command of gentk; its `--json`."""
    done = subprocess.run([sys.executable, "-m", "gentk", *words, "--json", "--quiet"], stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"gentk {' '.join(words)}: exit {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def trained(out: Path, data_name: str, label: str, sets: list[str], seed: int) -> tuple[Path, dict[str, float]]:
    name = f"{data_name}-{label}-{seed}".replace(":", "-").replace(" ", "-").replace(",", "")
    options = [word for each in sets for word in ("--set", each)]
    recipe = ["--data", data_name] if "/" not in data_name else ["--recipe", data_name]
    run = out / name.replace("/", "-")
    return run, gentk("train", "vsdm", *recipe, "--seed", str(seed), "--out", str(run), *options)["metrics"]


def sampler(run: Path, solver: str, nfe: int, prior: str, **own: Any) -> LinearSampler:
    model = load(str(run), kinds=("bridge",), where=CPU)
    denoiser: Any = model.net
    # one evaluation per step, the last step on the denoiser's output
    grid = build(TimeGrid(name="time", power=own.pop("power", 1.0)), nfe, denoiser.process)
    return LinearSampler(denoiser, tuple(range(model.classes)), CPU, prior, solver, grid, own)  # type: ignore[arg-type]


def points(out: Path, seeds: int, only: str = "") -> list[dict[str, Any]]:
    path = out / f"points{'-' + only[7:] if only.startswith('points:') else ''}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for name in POINTS:
        truth = data.load(Data(name=name, points=N), "test").x
        for seed in range(seeds):
            for label, sets in MODELS.items():
                if only and only not in (label, name):
                    continue
                run, metrics = trained(out, name, label, [*STEPS, *sets], seed)
                for prior in PRIORS:
                    for solver, own in (("dpmpp-2m", {}), ("sa-solver", {"tau": 1.0}))[: 1 + (prior == "exact")]:
                        for nfe in BUDGETS if prior != "kernel" else (20,):
                            key = {
                                "data": name,
                                "model": label,
                                "seed": seed,
                                "prior": prior,
                                "solver": solver,
                                "nfe": nfe,
                            }
                            if any(all(row[k] == v for k, v in key.items()) for row in rows):
                                continue
                            draw = sampler(run, solver, nfe, prior, **own)
                            x, way = followed(lambda first, n, trace, d=draw: d.part(first, n, 1, trace), N)
                            rows.append(
                                key
                                | {"sw2": sliced_wasserstein(x, truth), "spread": (x.std(0) / truth.std(0)).tolist()}
                                | straightness(way)
                                | {"rates": [metrics["rate_least"], metrics["rate_greatest"]]}
                            )
                            if nfe == 10 and prior == "exact" and solver == "dpmpp-2m":
                                save(
                                    paths_picture({label: way}), out / f"paths-{name[7:]}-{label.replace(' ', '-')}.png"
                                )
                    path.write_text(json.dumps(rows, indent=1))
        halves = data.load(Data(name=name, points=N), "train").x
        print(f"\n{name}: two sets of {N} real points: sliced W2 {sliced_wasserstein(halves, truth):.3f}")
        for prior in PRIORS:
            for solver in ("dpmpp-2m", "sa-solver")[: 1 + (prior == "exact")]:
                print(
                    f"\nprior {prior}, {solver}: sliced W2 (spread x, y; chord/arc) by NFE, mean over {seeds} seeds\n"
                )
                print("| model | " + " | ".join(map(str, BUDGETS)) + " |\n|---|" + "---|" * len(BUDGETS))
                for label in MODELS:
                    cells = []
                    for nfe in BUDGETS:
                        key = {"data": name, "model": label, "prior": prior, "solver": solver, "nfe": nfe}
                        found = [row for row in rows if all(row[k] == v for k, v in key.items())]
                        if not found:
                            cells.append("-")
                            continue
                        mean = lambda get, found=found: sum(map(get, found)) / len(found)  # noqa: E731
                        spread = ", ".join(f"{mean(lambda r, i=i: r['spread'][i]):.2f}" for i in (0, 1))
                        cells.append(f"{mean(lambda r: r['sw2']):.3f} ({spread}; {mean(lambda r: r['chord_arc']):.3f})")
                    print(f"| {label} | " + " | ".join(cells) + " |")
    return rows


SERIES = ("train/vsdm/series-exchange-rate", "train/vsdm/series-etth1")
FORECASTS = ("vsdm", "dsm", "naive", "naive_paths")


def series(out: Path, seeds: int, only: str = "") -> list[dict[str, Any]]:
    """Test windows of both real sets: mean and spread over seeds of what `gentk train vsdm` reports."""
    rows = []
    for recipe in SERIES:
        for label, sets in {"vsdm": [], "dsm": PLAIN}.items():
            for seed in range(seeds):
                if only and only not in (recipe, label, f"{recipe}:{seed}"):
                    continue
                _, metrics = trained(out, recipe, label, ["train.sample_every=0", *sets], seed)
                rows.append({"data": recipe, "model": label, "seed": seed} | metrics)
                (out / f"series{only.replace('/', '-').replace(':', '-')}.json").write_text(json.dumps(rows, indent=1))
    print("\n| data | forecast | CRPS-Sum | CRPS | exact CRPS, mean over series |\n|---|---|---|---|---|")
    for recipe in SERIES:
        for label in FORECASTS:
            model, end = ("vsdm", "_" + label) if label.startswith("naive") else (label, "")
            found = [row for row in rows if (row["data"], row["model"]) == (recipe, model)]
            if found:
                cells = [spread([row[k + end] for row in found]) for k in ("crps_sum", "crps", "crps_exact")]
                print(f"| {recipe.rpartition('series-')[2]} | {label.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return rows


LENGTHS = (150, 400)
SAMPLERS = (("flow", 10), ("flow", 20), ("sde", 20), ("sde", 50))
TUNING = 100  # a seed that no table uses


def held_out(out: Path, seeds: int, only: str = "") -> list[dict[str, Any]]:
    """Updates and sampler of each model chosen on five windows before the test windows, then the test, once."""
    from gentk.data import series as files
    from gentk.engine.forecasting import Scale, forecast
    from gentk.metrics.forecasts import crps_sum
    from gentk.recipe.series import Series

    def validated(run: Path, how: str, nfe: int) -> float:
        model = load(str(run), kinds=("forecaster",), where=CPU)
        own = model.header["series"] | {"sampler": how, "nfe": nfe}
        section = Series.model_validate_json(json.dumps(own))
        rows = files.load(Data(name=model.header["data"]["name"]), section)
        first = rows.starts("validation")
        x = rows.at(first)
        denoiser: Any = model.net
        scale = Scale(*(torch.tensor(each) for each in model.header["scale"]))
        given = {"count": 100, "prior": "exact", "gen": torch.Generator().manual_seed(0)}
        paths = forecast(denoiser, scale, section, x[:, : section.context], first, **given)  # type: ignore[arg-type]
        return crps_sum(paths, x[:, section.context :].double())

    path = out / f"held_out{only.replace('/', '-').replace(':', '-')}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    common = ["train.sample_every=0", "method.series.validation=5"]
    for recipe in SERIES:
        for label, sets in {"vsdm": [], "dsm": PLAIN}.items():
            if only and only not in (recipe, label, f"{recipe}:{label}"):
                continue
            tried = []
            for steps in LENGTHS:
                lengthened = [*common, *sets, f"train.steps={steps}"]
                run, _ = trained(out, recipe, f"{label} {steps}", lengthened, TUNING)
                for how, nfe in SAMPLERS:
                    tried.append((validated(run, how, nfe), steps, how, nfe))
            best, steps, how, nfe = min(tried)
            print(recipe, label, "validation:", [(round(t[0], 5), *t[1:]) for t in tried], flush=True)
            chosen = [
                *common,
                *sets,
                f"train.steps={steps}",
                f"method.series.sampler={how}",
                f"method.series.nfe={nfe}",
            ]
            for seed in range(seeds):
                key = {"data": recipe, "model": label, "seed": seed, "steps": steps, "sampler": how, "nfe": nfe}
                if not any(all(row[k] == v for k, v in key.items()) for row in rows):
                    _, metrics = trained(out, recipe, f"{label} chosen", chosen, seed)
                    rows.append(key | {"validation": best} | metrics)
                    path.write_text(json.dumps(rows, indent=1))
    print("\n| data | forecast | updates, sampler, NFE | CRPS-Sum | CRPS |\n|---|---|---|---|---|")
    for recipe in SERIES:
        for label in FORECASTS:
            model, end = ("vsdm", "_" + label) if label.startswith("naive") else (label, "")
            found = [row for row in rows if (row["data"], row["model"]) == (recipe, model)]
            if found:
                how = "" if end else f"{found[0]['steps']}, {found[0]['sampler']}, {found[0]['nfe']}"
                cells = [how, *(spread([row[k + end] for row in found]) for k in ("crps_sum", "crps"))]
                print(f"| {recipe.rpartition('series-')[2]} | {label.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return rows


def spread(values: list[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.5f} ({min(values):.5f} to {max(values):.5f})" if min(values) < max(values) else f"{mean:.5f}"


def digits(out: Path, seeds: int, only: str = "") -> list[dict[str, Any]]:
    """FD in classifier-digits at equal budgets of VSDM, the same without A, and edm-digits; 10,000 samples."""
    from gentk.metrics.features import extractor
    from gentk.metrics.frechet import frechet
    from gentk.metrics.quality import all_of, moments

    train = data.load(Data(name="digits"), "train")
    extract = extractor("classifier-digits", shape=train.shape, where=CPU)
    real = moments(extract(all_of(train)))
    path = out / f"digits{'-' + only if only else ''}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for seed in range(seeds):
        for label, sets in {"vsdm": [], "dsm": PLAIN, "edm-digits": None}.items():
            if only and only != label:
                continue
            model = "edm-digits" if sets is None else str(trained(out, "digits", label, sets, seed)[0])
            for solver in ("dpmpp-2m", "sa-solver"):
                for nfe in (10, 20, 50):
                    key = {"model": label, "seed": seed, "solver": solver, "nfe": nfe}
                    if (sets is None and seed) or any(all(row[k] == v for k, v in key.items()) for row in rows):
                        continue
                    name = f"{label}-{seed}-{solver}-{nfe}"
                    noisy = ["--set", "method.tau=1.0"] if solver == "sa-solver" else []
                    words = ["--model", model, "-n", "10000", "--set", f"nfe={nfe}", "--set", "save=[npz]"]
                    drawn = gentk("sample", solver, *words, *noisy, "--out", str(out / f"samples-{name}"))
                    with np.load(out / f"samples-{name}" / "samples.npz") as file:
                        x = torch.from_numpy(file["samples"]).float() / 127.5 - 1
                    rows.append(key | {"fd": frechet(real, moments(extract(x)))} | drawn["metrics"])
                    path.write_text(json.dumps(rows, indent=1))
    if only:  # what the other pieces have left
        rows = [row for part in sorted(out.glob("digits-*.json")) for row in json.loads(part.read_text())]
    print("\n| model | solver | 10 | 20 | 50 |\n|---|---|---|---|---|")
    for label in ("vsdm", "dsm", "edm-digits"):
        for solver in ("dpmpp-2m", "sa-solver"):
            cells = [
                spread([r["fd"] for r in rows if (r["model"], r["solver"], r["nfe"]) == (label, solver, nfe)] or [0.0])
                for nfe in (10, 20, 50)
            ]
            print(f"| {label} | {solver} | " + " | ".join(cells) + " |")
    return rows


def forms(out: Path, seeds: int, only: str = "") -> list[dict[str, Any]]:
    """A step in A and a step of the process, of one row of 64 trajectories of 20 steps, without a network."""
    from gentk.processes.linear_denoiser import LinearDenoiser
    from gentk.recipe.linear import Betas, Drift

    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor, c_noise: torch.Tensor, cond: Any = None) -> torch.Tensor:
            return torch.zeros_like(x)

        def parameters(self, recurse: bool = True) -> Any:
            return iter([torch.zeros(1)])

    rows = []
    for d in (2, 16, 64, 256):
        x = torch.randn(2 * d + 64, d) * torch.linspace(0.1, 3, d)
        for form in ("diag", "low-rank", "full"):
            if form == "low-rank" and d <= 8:
                continue
            denoiser = LinearDenoiser(Nothing(), Betas(), Drift(form=form, rank=8), (d,))
            denoiser.learn_data(x)
            took = []
            for k in range(3):
                begun = time.process_time()
                moments = backward(denoiser, n=64, steps=20, gen=torch.Generator().manual_seed(k))
                took.append(time.process_time() - begun)
            numbers = sum(b.numel() for n, b in denoiser.named_buffers() if n in ("basis", "strength"))
            numbers += moments.second.numel() + moments.cross.numel()
            z = denoiser.encode(torch.randn(256, d))
            t = torch.rand(256, dtype=torch.float64)
            denoiser.noised(z, t, z)
            begun = time.process_time()
            for _ in range(20):
                denoiser.decode(denoiser.noised(denoiser.encode(torch.randn(256, d)), t, z))
            step = (time.process_time() - begun) / 20
            rows.append(
                {"d": d, "form": form, "trajectories_ms": 1000 * min(took), "noise_ms": 1000 * step, "numbers": numbers}
            )
    (out / "forms.json").write_text(json.dumps(rows, indent=1))
    print(
        "\n| d | form | 64 trajectories of 20 steps and moments, CPU ms | noising 256 samples, CPU ms | numbers kept |"
    )
    print("|---|---|---|---|---|")
    for r in rows:
        print(f"| {r['d']} | {r['form']} | {r['trajectories_ms']:.1f} | {r['noise_ms']:.2f} | {r['numbers']:,} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["points", "digits", "series", "held_out", "forms"])
    parser.add_argument("--out", type=Path, default=Path("runs/vsdm-benchmark"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="one model or data set: a benchmark in pieces")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    globals()[options.part](options.out, options.seeds, options.only)


if __name__ == "__main__":
    main()
