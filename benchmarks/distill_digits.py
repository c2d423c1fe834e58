"""Distillation objectives side by side: same teacher, generator images and seeds; figures as ratios to the teacher's.

    python benchmarks/distill_digits.py [--teacher flow-digits|edm-digits] [--seeds 0,1,2] [--out runs/benchmark]

Each run is `gentk distill ...` in a folder of its own, so the table can be had again, or a stopped benchmark gone on
with, by the same command. Prints a Markdown table, mean and, over several seeds, the smallest and largest value, and
draws the Frechet distance over generator images (`curves.png`): line the mean, band smallest to largest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

# teacher -> name -> method and what is not of its recipe; the weight that its authors or successors use with it
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "edm-digits": {
        "SIM": ("sim",),
        "SIM, squared L2, weight sid-l1": (
            *("sim", "--set", "method.distance=l2"),
            *("--set", "method.weight=sid-l1"),
        ),
        "Diff-Instruct, weight sid-l1": ("diff-instruct", "--set", "method.weight=sid-l1"),
        "SiD": ("sid",),
        "FGM": ("fgm",),
    },
    "flow-digits": {"SIM": ("sim",), "SiD": ("sid",), "FGM": ("fgm",), "Diff-Instruct": ("diff-instruct",)},
}
STEPS, BATCH, EVERY = 1200, 128, 100  # the same generator images for all
COLUMNS = ("fd_student", "fd_teacher", "fd_ratio", "precision_student", "recall_student", "speedup")


def run(words: tuple[str, ...], teacher: str, seed: int, out: Path) -> dict[str, float]:
    size = ("--set", f"train.steps={STEPS}", "--set", f"train.batch={BATCH}", "--set", f"train.sample_every={EVERY}")
    where = ("--teacher", teacher, "--seed", str(seed), "--out", str(out))
    command = [sys.executable, "-m", "gentk", "distill", *words, *size, *where, "--quiet", "--json"]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    metrics: dict[str, float] = answer["metrics"]
    return metrics | {"seconds": answer["seconds"]}


def cell(values: list[float]) -> str:
    text = f"{mean(values):.3g}"
    return text if len(values) == 1 else f"{text} ({min(values):.3g} to {max(values):.3g})"


def curve(folder: Path) -> dict[int, float]:
    """Generator images -> Frechet distance of the averaged student, 2,000 samples."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"] * BATCH: row["eval/fd"] for row in rows if "eval/fd" in row}


def draw(curves: dict[str, list[dict[int, float]]], level: float, teacher: str, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, runs in curves.items():
        images = sorted(set.intersection(*(set(each) for each in runs)) - {0})
        columns = [[each[x] for each in runs] for x in images]
        (line,) = axes.plot([x / 1000 for x in images], [mean(c) for c in columns], label=name)
        low, high = [min(c) for c in columns], [max(c) for c in columns]
        axes.fill_between([x / 1000 for x in images], low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.axhline(level, color="0.4", linestyle="--", linewidth=1, label=f"teacher ({teacher}), 10,000 samples")
    axes.set(
        yscale="log", xlabel="generator images, thousands", ylabel="Frechet distance of the student, 2,000 samples"
    )
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=VARIANTS, default="flow-digits")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--only", help="one row")
    given = parser.parse_args()
    seeds = [int(word) for word in given.seeds.split(",")]
    print(f"{STEPS * BATCH:,} generator images each, seeds {given.seeds}\n")
    print("| objective | " + " | ".join([*COLUMNS, "seconds"]) + " |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    curves, levels = {}, []
    for name, words in VARIANTS[given.teacher].items():
        if given.only not in (None, name):
            continue
        slug = f"{given.teacher}-{name.partition(', weight')[0].lower().replace(', ', '-').replace(' ', '-')}"
        folders = [given.out / f"{slug}-{seed}" for seed in seeds]
        rows = [run(words, given.teacher, seed, out) for seed, out in zip(seeds, folders, strict=True)]
        curves[name] = [curve(folder) for folder in folders]
        levels += [row["fd_teacher"] for row in rows]
        print(f"| {name} | " + " | ".join(cell([r[c] for r in rows]) for c in [*COLUMNS, "seconds"]) + " |", flush=True)
    draw(curves, mean(levels), given.teacher, given.out / f"curves-{given.teacher}.png")


if __name__ == "__main__":
    main()
