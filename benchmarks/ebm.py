"""Energies of the plane: DCD against CD and PCD at equal computing time, by the KL divergence on a grid.

    python benchmarks/ebm.py --tune --out tuned.json --seconds 2 [--sets ring8,rings] [--methods cd,pcd]
    python benchmarks/ebm.py --out ebm.json --tuned tuned.json [--seeds 0,1,2] [--seconds 4] [--methods dcd,cd,pcd]
    python benchmarks/ebm.py --out ebm.json --table

Every fit gets the same network and as many steps as `--seconds` of CPU time pay for, on one
thread: wall time would measure what else the machine does. The learning rate falls with the time that is left. Results
go into the JSON file one by one, and what is there already is not done again. `--tune` tries each baseline on each set
by a seed that no table uses: GRID first, then each of AROUND at the best of it. DCD is not tuned.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from gentk.engine import ema, optim, rng
from gentk.engine.method import Batch
from gentk.errors import GentkError
from gentk.nets.energy import Energy
from gentk.recipe import registry
from gentk.recipe.schema import Ema
from gentk.tasks.train_ebm._fitting import Fitting, bare
from gentk.tasks.train_ebm._showing import Showing

SETS = ("ring8", "rings", "pinwheel", "banana")
BATCH = 256
TUNING = 100  # the seed
GRID = [{"step_size": size, "penalty": penalty} for size in (0.003, 0.01, 0.03) for penalty in (0.03, 0.1, 0.3)]
AROUND = ({"lr": 7e-4}, {"lr": 5e-3}, {"steps": 30})
METHODS: dict[str, dict[str, Any]] = {
    "dcd": {"name": "dcd", "estimator": "ranking", "sigma": (0.1, 1.0), "candidates": 8},
    # where nothing was tuned; without a penalty both run away
    "cd": {"name": "cd", "steps": 10, "step_size": 0.01, "penalty": 0.1},
    "pcd": {"name": "pcd", "steps": 10, "step_size": 0.01, "penalty": 0.1},
}


def build(name: str, data: str, seed: int, own: dict[str, Any]) -> Fitting:
    own = {"lr": 2e-3} | own
    lr = own.pop("lr")
    section = registry.recipe_schema("train-ebm", METHODS[name]["name"])(
        task="train-ebm",
        about="a benchmark",
        size="laptop",
        seed=seed,
        data={"name": f"points:{data}"},
        net={"name": "energy-mlp"},
        method=METHODS[name] | own,
        optim={"lr": lr, "betas": (0.9, 0.99), "decay": "cosine"},
        train={"steps": 1, "batch": BATCH},
    )
    built = registry.method_module("train-ebm", METHODS[name]["name"]).build(section, torch.device("cpu"))
    assert isinstance(built, Fitting)
    return built


def fit(method: Fitting, seconds: float, seed: int, *, batch: int = BATCH) -> tuple[Energy, int]:
    """The average of the weights after `seconds` of CPU time, and the steps that were made."""
    net = method.nets["energy"]
    averaged = copy.deepcopy(net).eval().requires_grad_(False)
    adam = optim.build(method.recipe.optim, net.parameters())
    begun, step = time.process_time(), 0
    while (spent := time.process_time() - begun) < seconds:
        x, _ = method.data.batch(rng.indices(seed, step * batch, batch, len(method.data)))
        loss, _ = next(method.phases(step)).loss(Batch(batch, x), rng.generator(seed, step))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), method.recipe.optim.clip or math.inf)
        for group in adam.param_groups:
            group["lr"] = (
                method.recipe.optim.lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * spent / seconds))
            )
        adam.step()
        step += 1
        ema.update(averaged, net, ema.decay(Ema(half_life=10_000), batch, step * batch))
    return bare(averaged), step


def measured(name: str, data: str, seed: int, seconds: float, own: dict[str, Any]) -> dict[str, Any]:
    """One fit; a KL of infinity where it has diverged."""
    key = {"data": data, "method": name, "seed": seed, "seconds": seconds, "own": own}
    method = build(name, data, seed, own)
    try:
        net, steps = fit(method, seconds, seed)
    except GentkError as error:
        return key | {"steps": 0, "kl": math.inf, "said": str(error)}
    figures, _ = Showing(method, net)._plane()
    kl = figures["kl"] if math.isfinite(figures["kl"]) else math.inf
    return key | {"steps": steps, "kl": kl, "energy_range": figures["energy_range"]}


def runs(
    sets: list[str],
    methods: list[str],
    seeds: list[int],
    seconds: float,
    done: list[Any],
    tuned: dict[tuple[str, str], dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    for seed in seeds:
        for data in sets:
            for name in methods:
                key = {"data": data, "method": name, "seed": seed, "seconds": seconds}
                if not any(all(row[k] == v for k, v in key.items()) for row in done):
                    yield measured(name, data, seed, seconds, tuned.get((data, name), {}))


def best(rows: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """By data and method, the settings of the least KL."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -float(row["kl"])):
        found[row["data"], row["method"]] = row["own"]
    return found


def tuning(sets: list[str], methods: list[str], seconds: float, done: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for data in sets:
        for name in methods:
            tried = [row for row in done if (row["data"], row["method"]) == (data, name)]
            for own in GRID:
                if all(row["own"] != own for row in tried):
                    tried.append(measured(name, data, TUNING, seconds, own))
                    yield tried[-1]
            first = best([row for row in tried if row["own"] in GRID])[data, name]
            for more in AROUND:
                if all(row["own"] != first | more for row in tried):
                    tried.append(measured(name, data, TUNING, seconds, first | more))
                    yield tried[-1]


def table(rows: list[dict[str, Any]]) -> str:
    """KL(data | model) in nats, mean and range over seeds, and steps made."""
    names = [m for m in METHODS if any(row["method"] == m for row in rows)]
    lines = ["| data | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for data in dict.fromkeys(row["data"] for row in rows):
        cells = []
        for name in names:
            own = [row for row in rows if (row["data"], row["method"]) == (data, name)]
            values = [row["kl"] for row in own]
            if not values:
                cells.append("")
                continue
            mean = sum(values) / len(values)
            cells.append(f"{mean:.3f} ({min(values):.3f} to {max(values):.3f}), {own[0]['steps']} steps")
        lines.append(f"| {data} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--methods")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--tuned", type=Path, nargs="*", default=[])
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(given.out.read_text()) if given.out.exists() else []
    sets, methods = (
        given.sets.split(","),
        (given.methods or ",".join(("cd", "pcd") if given.tune else METHODS)).split(","),
    )
    tuned = best([row for path in given.tuned for row in json.loads(path.read_text())])
    if given.tune:
        todo = tuning(sets, methods, given.seconds, list(rows))
    else:
        todo = runs(sets, methods, [int(s) for s in given.seeds.split(",")], given.seconds, rows, tuned)
    for row in () if given.table else todo:
        rows.append(row)
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
        print(row, flush=True)
    if given.tune:
        print("\n".join(f"{data}, {name}: {own}" for (data, name), own in best(rows).items()))
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
