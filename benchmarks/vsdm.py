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
import multiprocessing
import resource
import subprocess
import sys
import time
from collections.abc import Callable
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
            model = "edm-digits" if sets is None else str(trained(out, "digits", label, [*STEPS, *sets], seed)[0])
            for solver in ("dpmpp-2m",):  # the reverse SDE needs more evaluations than these
                for nfe in (10, 20, 50):
                    key = {"model": label, "seed": seed, "solver": solver, "nfe": nfe}
                    if (sets is None and seed) or any(all(row[k] == v for k, v in key.items()) for row in rows):
                        continue
                    name = f"{label}-{seed}-{solver}-{nfe}"
                    words = ["--model", model, "-n", "4000", "--set", f"nfe={nfe}", "--set", "save=[npz]"]
                    drawn = gentk("sample", solver, *words, "--out", str(out / f"samples-{name}"))
                    with np.load(out / f"samples-{name}" / "samples.npz") as file:
                        x = torch.from_numpy(file["samples"]).float() / 127.5 - 1
                    rows.append(key | {"fd": frechet(real, moments(extract(x)))} | drawn["metrics"])
                    path.write_text(json.dumps(rows, indent=1))
    if only:  # what the other pieces have left
        rows = [row for part in sorted(out.glob("digits-*.json")) for row in json.loads(part.read_text())]
    print("\n| model | solver | 10 | 20 | 50 |\n|---|---|---|---|---|")
    for label in ("vsdm", "dsm", "edm-digits"):
        for solver in ("dpmpp-2m",):
            cells = [
                spread([r["fd"] for r in rows if (r["model"], r["solver"], r["nfe"]) == (label, solver, nfe)] or [0.0])
                for nfe in (10, 20, 50)
            ]
            print(f"| {label} | {solver} | " + " | ".join(cells) + " |")
    return rows


def form(d: int, name: str) -> dict[str, Any]:
    """One form of A at one d, in a process of its own: its peak memory is that of the method alone.

    `without` a network (what the linear process costs), then by the method's own code with an MLP of width 128: one
    update of 256, and one step in A of 256 trajectories of 25 steps. CPU time, the least of several.
    """
    from gentk import nets
    from gentk.processes.linear_denoiser import LinearDenoiser
    from gentk.recipe.linear import Drift
    from gentk.recipe.networks import Mlp
    from gentk.tasks.train._bridging import improve, linear_denoiser, matching
    from gentk.tasks.train.vsdm import Config

    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor, c_noise: torch.Tensor, cond: Any = None) -> torch.Tensor:
            return torch.zeros_like(x)

        def parameters(self, recurse: bool = True) -> Any:
            return iter([torch.zeros(1)])

    def least(what: Callable[[int], object], times: int) -> float:
        took = []
        for k in range(times):
            begun = time.process_time()
            what(k)
            took.append(time.process_time() - begun)
        return 1000 * min(took)

    def gen(k: int) -> torch.Generator:
        return torch.Generator().manual_seed(k)

    torch.set_num_threads(1)
    x = torch.randn(2 * d + 64, d, generator=gen(0)) * torch.linspace(0.1, 3, d)
    config = Config(name="vsdm", drift=Drift(form=name, rank=8), start="gaussian", paths=256, path_steps=25)  # type: ignore[arg-type]
    bare = LinearDenoiser(Nothing(), config.betas, config.drift, (d,))
    bare.learn_data(x)
    bare.strength[:] = linear_denoiser(Nothing(), config, x).strength
    z, t = bare.encode(torch.randn(256, d)), torch.rand(256, dtype=torch.float64)
    net = nets.build(Mlp(name="mlp", width=128, blocks=3), shape=(d,), classes=0)
    denoiser = linear_denoiser(net, config, x)
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    batch = x[torch.randint(len(x), (256,), generator=gen(1))]

    def update(k: int) -> None:
        adam.zero_grad()
        matching(denoiser, batch, None, config, gen(k))[0].backward()
        adam.step()

    plain = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    row = {
        "d": d,
        "form": name,
        "bare_paths_ms": least(lambda k: backward(bare, n=64, steps=20, gen=gen(k)), 3),
        "bare_noise_ms": least(lambda k: bare.decode(bare.noised(bare.encode(batch), t, z)), 20),
        "update_ms": least(update, 20),
        "step_in_a_ms": least(lambda k: improve(denoiser, config, 1, gen(k)), 3),
        "a_numbers": bare.basis.numel() + bare.strength.numel(),
    }
    moments = backward(bare, n=8, steps=4, gen=gen(0))
    row["numbers"] = row["a_numbers"] + moments.second.numel() + moments.cross.numel()
    return row | {"peak_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - plain) / 1024}


def forms(out: Path, seeds: int, only: str = "") -> list[dict[str, Any]]:
    """Time and memory of a run's parts over d, for the three forms of A."""
    rows = []
    for d in (2, 16, 64, 256):
        for name in ("diag", "low-rank", "full"):
            if name == "low-rank" and d <= 8:
                continue
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(form, (d, name)))
            (out / "forms.json").write_text(json.dumps(rows, indent=1))
    names = ("bare_paths_ms", "bare_noise_ms", "update_ms", "step_in_a_ms", "peak_mb")
    print("\n| d | form | " + " | ".join(names) + " | numbers of A and basis | with moments |\n" + "|---" * 9 + "|")
    for r in rows:
        cells = " | ".join(f"{r[name]:.2f}" for name in names)
        print(f"| {r['d']} | {r['form']} | {cells} | {r['a_numbers']:,} | {r['numbers']:,} |")
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
