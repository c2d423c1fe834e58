"""What a reward costs: digits aligned by DI++, DI* and the reward alone, alpha_rew in a sweep; and the figure of it.

    python benchmarks/align.py --reward class|brightness [--only NAMES] [--seed 0] [--out runs/align]
    python benchmarks/align.py --draw docs/align.png       # the tables and the figure of what has been run

Each run is `gentk align ...` in a folder of its own, so a stopped sweep goes on by the same command. alpha_rew is set
by the ratio of the two gradients at the start (`method.ratio`), so that one sweep means the same for both divergences.
FD, recall and accuracy are those of a classifier that no run has seen (`gentk train classifier --data digits --seed
11`): in the features of the classifier that gives the reward, a model that pleases it would look too good.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RATIOS = (0.3, 1.0, 3.0, 10.0)
METHODS = {"dipp": "DI++", "di-star": "DI*"}
STEPS, WARMUP = 500, 150
COLUMNS = (
    *("alpha_rew", "reward_before", "reward_after", "other_class_after", "fd_before", "fd_after"),
    *("precision_after", "recall_before", "recall_after", "spread_ratio"),
)


def gentk(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "gentk", *words, "--quiet", "--json"]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return answer


def cases(reward: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name of the run -> method and what is not of its recipe."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for method in METHODS:
        found[f"{reward}-{method}-0"] = (method, ("--set", "method.alpha_rew=0.0"))
        for ratio in RATIOS:
            found[f"{reward}-{method}-{ratio:g}"] = (method, ("--set", f"method.ratio={ratio}"))
    alone = ("--set", "method.leash=0", "--set", "method.alpha_rew=1.0")
    return found | {f"{reward}-alone": ("dipp", alone)}


def run(name: str, method: str, own: tuple[str, ...], reward: str, seed: int, out: Path) -> dict[str, float]:
    judge = str(out / "judge")
    sets = (
        f"train.steps={STEPS}",
        f"method.warmup={WARMUP}",
        f"measure.features={judge}",
        f"method.watch.features={judge}",
        f"method.watch.others=[{{name: class, classifier: {judge}}}]",
    )
    words = [word for each in sets for word in ("--set", each)]
    folder = out / f"{name}-seed{seed}"
    answer = gentk("align", method, "--reward", reward, *words, *own, "--seed", str(seed), "--out", str(folder))
    metrics: dict[str, float] = answer["metrics"]
    return metrics | {"seconds": answer["seconds"]}


def finished(out: Path, reward: str, seed: int) -> dict[str, dict[str, float]]:
    """The figures of the runs that are done."""
    found = {}
    for name in cases(reward):
        path = out / f"{name}-seed{seed}" / "run.json"
        if path.is_file() and (info := json.loads(path.read_text("utf-8"))).get("status") == "done":
            found[name] = info["metrics"]
    return found


def table(rows: dict[str, dict[str, float]]) -> str:
    lines = ["| run | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[c]:.3g}" if c in row else "-" for c in COLUMNS) + " |")
    return "\n".join(lines)


def draw(out: Path, seed: int, path: Path) -> None:
    """Reward gained against the distance to the data and against recall, a panel each, for both rewards."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    rewards = [reward for reward in ("class", "brightness") if finished(out, reward, seed)]
    figure, grid = plt.subplots(len(rewards), 2, figsize=(9, 3.7 * len(rewards)), layout="constrained", squeeze=False)
    units = {"class": "ln p(class), the reward", "brightness": "mean brightness, the reward"}
    told: list[tuple[Any, list[tuple[str, tuple[float, float], Any]]]] = []  # panels, and what is written at points
    for axes, reward in zip(grid, rewards, strict=True):
        rows = finished(out, reward, seed)
        for panel, what, label in zip(
            axes, ("fd", "recall"), ("Frechet distance, 10,000 samples", "recall"), strict=True
        ):
            texts = []
            for method, shown in METHODS.items():
                line = {n.rpartition("-")[2]: r for n, r in rows.items() if n.startswith(f"{reward}-{method}-")}
                if not line:
                    continue
                points = [(r["reward_after"], r[f"{what}_after"]) for r in line.values()]
                (drawn,) = panel.plot(*zip(*points, strict=True), "o-", ms=4, label=f"{shown}, ratio at the points")
                texts += [(ratio, at, drawn.get_color()) for ratio, at in zip(line, points, strict=True)]
            if alone := rows.get(f"{reward}-alone"):
                panel.plot(alone["reward_after"], alone[f"{what}_after"], "x", color="tab:red", label="reward alone")
                texts.append(("", (alone["reward_after"], alone[f"{what}_after"]), None))
            first = next(iter(rows.values()))
            panel.plot(first["reward_before"], first[f"{what}_before"], "s", color="0.3", label="before")
            texts.append(("", (first["reward_before"], first[f"{what}_before"]), None))
            panel.set(xlabel=units[reward], ylabel=label)
            panel.margins(x=0.09, y=0.12)
            if what == "fd":
                panel.set_yscale("log")
                wide = max(at[1] for _, at, _ in texts) > 100 * min(at[1] for _, at, _ in texts)
                panel.yaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
                panel.yaxis.set_major_formatter("{x:g}")
                panel.yaxis.set_minor_formatter(NullFormatter())
            panel.spines[["top", "right"]].set_visible(False)
            told.append((panel, texts))
        axes[0].legend(frameon=False, fontsize=8)
    figure.canvas.draw()  # places are known once everything is laid out
    for panel, texts in told:
        _label(panel, texts)
    figure.savefig(path, dpi=130)


def _label(panel: Any, texts: list[tuple[str, tuple[float, float], Any]]) -> None:
    """Writes each text beside its point, where no other text or point is."""
    at = panel.transData.transform([place for _, place, _ in texts])
    taken = [(x, y, 3.0) for x, y in at]
    ways = [(dx * r, dy * r) for r in (11, 17, 24) for dx, dy in ((0, 1), (0, -1), (-1, 0), (1, 0), (-1, 1), (1, -1))]
    for (text, place, colour), (x, y) in zip(texts, at, strict=True):
        width = 3.0 * len(text)
        for dx, dy in ways:
            if all(abs(x + dx - a) > width + w + 2 or abs(y + dy - b) > 10 for a, b, w in taken):
                break
        if text:
            taken.append((x + dx, y + dy, width))
            how = {"xytext": (dx * 0.72, dy * 0.72), "textcoords": "offset points", "fontsize": 7, "color": colour}
            panel.annotate(text, place, ha="center", va="center", **how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", choices=("class", "brightness"), default="class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/align"))
    parser.add_argument("--only", help="some of the runs, such as class-dipp-1,class-alone")
    parser.add_argument("--draw", type=Path, help="run nothing; draw what there is into this file and print the tables")
    given = parser.parse_args()
    if given.draw is None:
        gentk("train", "classifier", "--data", "digits", "--seed", "11", "--out", str(given.out / "judge"))
        for name, (method, own) in cases(given.reward).items():
            if given.only is None or name in given.only.split(","):
                run(name, method, own, given.reward, given.seed, given.out)
                print(table({name: finished(given.out, given.reward, given.seed)[name]}), flush=True)
        return
    for reward in ("class", "brightness"):
        if rows := finished(given.out, reward, given.seed):
            print(f"\n{reward}, seed {given.seed}\n\n{table(rows)}")
    draw(given.out, given.seed, given.draw)


if __name__ == "__main__":
    main()
