"""Implicit samplers in one run: the plane, and posteriors of logistic regressions.

python benchmarks/implicit.py plane|logistic [--targets A,B] [--seeds 0,1,2] [--out runs/implicit] [--set K=V]...
python benchmarks/implicit.py nuts [--targets logistic:A,logistic:B] [--seeds 0] [--out runs/implicit]

Every figure is a run of `gentk train implicit-kl` in a folder of its own, so that a stop loses one; the same command
goes on, and writes implicit-GROUP.json and a table of what is there. Times are ratios within one process. `nuts` holds
the samplers of `logistic` against blackjax's NUTS (`gentk[mcmc]`): moments, and the time to 10,000 draws by each.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from gentk.engine.run import Job
from gentk.errors import GentkError
from gentk.metrics import sampled
from gentk.metrics.nuts import nuts
from gentk.nets.implicit import load as load_sampler
from gentk.recipe import load, registry, store
from gentk.targets import tables
from gentk.targets.logistic import Logistic

SCALES = {"normal": 1.5, "u3": 3.0}  # of targets without a recipe of their own
PLANE = (
    *("normal", "mog2-near", "mog2", "donut", "rosenbrock", "squiggle", "mcmc-banana", "neal-funnel"),
    *("u1", "u2", "u3", "u4", "funnel", "rings", "ring8"),
)
TABLES = ("synthetic", "breast-cancer", "german", "ionosphere", "sonar", "banknote", "adult")
COLUMNS = {
    "plane": ("mmd2", "mmd2_null", "sw2", "sw2_null", "mass_error", "mass_null", "ksd2", "log_q_gap", "waited"),
    "logistic": (
        *("mean_error_max", "sd_ratio_min", "sd_ratio_max", "mmd2", "mmd2_null", "sw2", "sw2_null", "c2st"),
        *("train_seconds", "ms_per_1000", "hmc_ms_per_1000", "hmc_over_sampler", "n_star"),
    ),
    "nuts": (
        *("r_hat", "ess", "mean_error_max", "sd_ratio_min", "sd_ratio_max", "halves_mean_error_max"),
        *("halves_sd_ratio_min", "halves_sd_ratio_max", "nuts_seconds", "train_seconds", "draw_seconds", "n_star"),
    ),
}
DRAWS = 10_000


def run(target: str, seed: int, out: Path, sets: list[str]) -> dict[str, Any]:
    path, swapped = store.pick("train", "implicit-kl", target)
    given: dict[str, Any] = {"seed": seed} | ({"target": target} if swapped else {})
    own = [f"method.scale={SCALES[target]}"] if target in SCALES else []
    own += ["measure.race=false", "train.sample_every=0"] if ":" not in target else []
    loaded = load.load(path, [*own, *sets], overrides=given)
    folder = out / f"{target.replace(':', '-').replace('/', '-')}-{seed}"
    outcome = registry.task_module("train").run(Job("train", loaded, folder, quiet=True, command="benchmark"))
    return {"target": target, "seed": seed, "seconds": outcome.seconds, **outcome.metrics}


def beside_nuts(target: str, seed: int, out: Path) -> dict[str, Any]:
    """Of the run that is there: moments beside NUTS, whose own halves beside each other are the error of NUTS."""
    folder = out / f"{target.replace(':', '-')}-{seed}"
    model = Logistic(tables.load(target.removeprefix("logistic:")))
    ref, sampler = nuts(model, seed), load_sampler(str(folder)).net
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        x = sampler(torch.randn(DRAWS, model.dim, generator=gen))
    ours, halves = sampled.moments(x, ref.draws), sampled.moments(*ref.draws.chunk(2))
    seconds = sampled.timed(sampler, DRAWS, model.dim, gen)
    training = json.loads((folder / "run.json").read_text())["metrics"]["train_seconds"]
    return {
        "target": target,
        "seed": seed,
        "r_hat": ref.r_hat,
        "ess": ref.ess,
        "mean_error_max": float(ours.shift.abs().max()),
        "sd_ratio_min": float(ours.ratio.min()),
        "sd_ratio_max": float(ours.ratio.max()),
        "halves_mean_error_max": float(halves.shift.abs().max()),
        "halves_sd_ratio_min": float(halves.ratio.min()),
        "halves_sd_ratio_max": float(halves.ratio.max()),
        "nuts_seconds": DRAWS * ref.seconds_per_draw,
        "train_seconds": training,
        "draw_seconds": seconds,
        "n_star": sampled.break_even(training, ref.seconds_per_draw, seconds / DRAWS),
    }


def table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    lines = ["| target | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for target in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == target]
        cells = []
        for name in columns:
            values = [row[name] for row in own if name in row]
            if not values:
                cells.append("-")
            elif len(values) == 1:
                cells.append(f"{values[0]:.3g}")
            else:
                cells.append(f"{statistics.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})")
        lines.append(f"| {target} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=COLUMNS)
    parser.add_argument("--targets")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/implicit"))
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    posteriors = tuple(f"logistic:{name}" for name in TABLES)
    every = {"plane": PLANE, "logistic": posteriors, "nuts": posteriors}
    targets = given.targets.split(",") if given.targets else every[given.group]
    kept = given.out / f"implicit-{given.group}.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for seed in map(int, given.seeds.split(",")):
        for target in targets:
            rows = [row for row in rows if (row["target"], row["seed"]) != (target, seed)]
            try:
                if given.group == "nuts":
                    rows.append(beside_nuts(target, seed, given.out))
                else:
                    rows.append(run(target, seed, given.out, given.set))
            except GentkError as error:
                print(f"{target}, seed {seed}: {error}")
                continue
            kept.write_text(json.dumps(rows, indent=1))
            print(table([row for row in rows if row["target"] == target], COLUMNS[given.group]), flush=True)
    print(table(rows, COLUMNS[given.group]))


if __name__ == "__main__":
    main()
