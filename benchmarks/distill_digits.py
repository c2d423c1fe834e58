"""Distillation objectives side by side: same teacher, generator images and seeds; figures as ratios to the teacher's.

    python benchmarks/distill_digits.py [--seeds 3] [--out runs/benchmark]

Each run is `gentk distill ...` in a folder of its own, so the table can be had again, or a stopped benchmark gone on
with, by the same command. Prints a Markdown table: mean and, over several seeds, the smallest and largest value.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

# name -> (method, distance and weight spelt out: the weight that the objective's authors or successors use with it)
VARIANTS = {
    "SIM, pseudo-Huber, weight 1": ("sim", "--set", "method.distance=pseudo-huber", "--set", "method.weight=const"),
    "SIM, squared L2, weight sid-l1": ("sim", "--set", "method.distance=l2", "--set", "method.weight=sid-l1"),
    "Diff-Instruct, weight sid-l1": ("diff-instruct", "--set", "method.weight=sid-l1"),
}
STEPS, BATCH = 1200, 128  # the same generator images for all
COLUMNS = ("fd_student", "fd_teacher", "fd_ratio", "precision_student", "recall_student", "speedup")


def run(words: tuple[str, ...], seed: int, out: Path) -> dict[str, float]:
    size = ("--set", f"train.steps={STEPS}", "--set", f"train.batch={BATCH}")
    where = ("--seed", str(seed), "--out", str(out))
    command = [sys.executable, "-m", "gentk", "distill", *words, *size, *where, "--json"]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    metrics: dict[str, float] = answer["metrics"]
    return metrics | {"seconds": answer["seconds"]}


def cell(values: list[float]) -> str:
    text = f"{mean(values):.3g}"
    return text if len(values) == 1 else f"{text} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--only", choices=VARIANTS, help="one row")
    given = parser.parse_args()
    print(f"{STEPS * BATCH:,} generator images each\n")
    print("| objective | " + " | ".join([*COLUMNS, "seconds"]) + " |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    for name, words in VARIANTS.items():
        if given.only not in (None, name):
            continue
        slug = name.partition(", weight")[0].lower().replace(", ", "-").replace(" ", "-")
        rows = [run(words, seed, given.out / f"{slug}-{seed}") for seed in range(given.seeds)]
        print(f"| {name} | " + " | ".join(cell([r[c] for r in rows]) for c in [*COLUMNS, "seconds"]) + " |", flush=True)


if __name__ == "__main__":
    main()
