"""Priors learned from corrupted digits alone, beside the bound and the baselines; and what each is worth as a restorer.

    python benchmarks/restore_digits.py [--seeds 0,1,2] [--out DIR] [--only priors|restorers|start] [--operators ...]

Noise of deviation .5 in [-1, 1], or half of the pixels hidden and noise of .05. Every run is a `gentk restore ...` in a
folder of its own: the table can be had again, or a stopped benchmark gone on with, by the same command. `--have`
tells of finished runs only. Prints Markdown tables; several seeds are mean (least to largest).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

NOISE = {"noise": ("--operator", "noise", "--sigma", "0.5"), "inpaint": ("--operator", "inpaint", "--sigma", "0.05")}
PRIORS: dict[str, dict[str, tuple[str, ...]]] = {
    op: {
        "clean": ("naive", "--set", "method.see=clean"),
        "naive": ("naive", *(() if op == "noise" else NOISE[op])),
        "ambient": ("ambient", *(("--recipe", "restore/ambient/digits-noise") if op == "noise" else ())),
        "em": ("em", *(("--recipe", "restore/em/digits-inpaint") if op == "inpaint" else ())),
        "fd": (
            "flowdiff",
            *(("--recipe", "restore/flowdiff/digits-inpaint") if op == "inpaint" else ()),
        ),
    }
    for op in NOISE
}
RESTORERS: dict[str, dict[str, tuple[str, ...]]] = {
    "noise": {
        "reverse, 24-level grid": ("reverse", "--draws", "8"),
        "pigdm, covariance": ("pigdm", "--draws", "8", "--steps", "30"),
        "diffpir": ("diffpir", "--steps", "100"),
        "ddnm": ("ddnm", "--steps", "100"),
        "dps": ("dps", "--steps", "100"),
    },
    "inpaint": {
        "pigdm, covariance": ("pigdm", "--draws", "8", "--steps", "30"),
        "pigdm, one variance": ("pigdm", "--draws", "8", "--steps", "100", "--set", "method.covariance=false"),
        "diffpir": ("diffpir", "--steps", "100"),
        "ddnm": ("ddnm", "--steps", "100"),
        "dps": ("dps", "--steps", "100"),
    },
}
IMAGES = ("-n", "50")


def gentk(words: Sequence[str], out: Path, *, have: bool) -> dict[str, float] | None:
    """The figures of a run; with `have` those on disk, None where it is not finished."""
    if have:
        record = out / "run.json"
        kept = json.loads(record.read_text()) if record.exists() else {"status": "absent"}
        return kept["metrics"] | {"seconds": kept["seconds"]} if kept["status"] == "done" else None
    command = [sys.executable, "-m", "gentk", "restore", *words, "--out", str(out), "--quiet", "--json"]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    figures: dict[str, float] = answer["metrics"]
    return figures | {"seconds": answer["seconds"]}


def cell(rows: list[dict[str, float]], name: str) -> str:
    values = [row[name] for row in rows if name in row]
    if not values:
        return ""
    text = f"{mean(values):.3g}"
    return text if len(values) == 1 else f"{text} ({min(values):.3g} to {max(values):.3g})"


def table(rows: dict[str, list[dict[str, float]]], columns: Sequence[str]) -> None:
    print(f"| | seeds | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 2) + "|")
    for name, found in rows.items():
        print(f"| {name} | {len(found)} | {' | '.join(cell(found, each) for each in columns)} |")
    print(flush=True)


def priors(op: str, seeds: list[str], out: Path, *, have: bool) -> None:
    rows: dict[str, list[dict[str, float]]] = {}
    for name, words in PRIORS[op].items():
        for seed in seeds:
            folder = out / (f"clean-{seed}" if name == "clean" else f"{name}-{op}-{seed}")
            found = gentk([*words, "--seed", seed], folder, have=have)
            if found is not None:
                rows.setdefault(name, []).append(found)
    print(f"\n{op}: priors\n")
    table(rows, ("fd", "fd_measured", "precision", "recall", "nfe", "psnr_mean", "seconds"))


def restorers(op: str, seed: str, out: Path, *, have: bool) -> None:
    rows: dict[str, list[dict[str, float]]] = {}
    flow = out / f"fd-{op}-{seed}" / "export" / "flow.safetensors"
    if flow.exists():
        words = ["flow", "--model", str(flow), *NOISE[op], "--draws", "16", *IMAGES]
        if found := gentk(words, out / f"by-flow-{op}-{seed}", have=have):
            rows["flow, 16 draws"] = [found]
    for prior in ("clean", "fd", "em", "naive"):
        run = out / (f"clean-{seed}" if prior == "clean" else f"{prior}-{op}-{seed}")
        model = run / "export" / "prior.safetensors"
        for name, words_ in RESTORERS[op].items():
            if not model.exists() or (prior in ("em", "naive") and name != next(iter(RESTORERS[op]))):
                continue
            folder = out / f"by-{prior}-{op}-{seed}-{name.replace(', ', '-').replace(' ', '-')}"
            found = gentk([*words_, "--model", str(model), *NOISE[op], *IMAGES], folder, have=have)
            if found is not None:
                rows[f"{name}, prior {prior}"] = [found]
    print(f"\n{op}: restorers, seed {seed}\n")
    columns = (
        "psnr",
        "psnr_one_draw",
        "psnr_measured",
        "coverage_90",
        "z_rms",
        "nfe",
        "backward_passes",
        "seconds_per_image",
    )
    table(rows, columns)


def start(op: str) -> None:
    """What the measurements' mean and covariance alone are worth: the prior that flowdiff and em begin with."""
    import torch
    from torch import Tensor

    from gentk.engine.generative import rounded
    from gentk.metrics.features import extractor
    from gentk.metrics.frechet import frechet
    from gentk.metrics.paired import psnr
    from gentk.metrics.quality import all_of, moments
    from gentk.recipe import load, store
    from gentk.tasks.restore._corrupted import Corrupted, Moments
    from gentk.tasks.restore._rounds import gaussian

    name = "restore/flowdiff/digits" + ("-inpaint" if op == "inpaint" else "")
    recipe = load.load(next(each.path for each in store.recipes() if each.name == name), []).recipe
    held, test = (Corrupted(recipe, split, torch.device("cpu")) for split in ("train", "test"))
    known, gen = Moments(held, recipe.sigma), torch.Generator().manual_seed(0)

    def noise(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=gen)

    y, at, x = test.first(200)
    draws = torch.stack([gaussian(at, y, recipe.sigma, known, noise) for _ in range(16)], 1)
    views = {"psnr_mean": draws.mean(1), "psnr_draw": draws[:, 0]}
    row = {key: float(psnr(each.clamp(-1, 1), x, data_range=2).mean()) for key, each in views.items()}
    features = extractor("classifier-digits", shape=(1, 8, 8), where=torch.device("cpu"))
    real = moments(features(all_of(held.clean)))
    y, at, _ = held.first(len(held))
    assert known.root is not None
    white = noise(torch.empty(2000, 64))
    sets = {
        "fd_measured": y,
        "fd_draws": gaussian(at, y, recipe.sigma, known, noise),
        "fd": known.mean + (white @ known.root.T).reshape(-1, 1, 8, 8),
    }
    row |= {key: frechet(real, moments(features(rounded(each)))) for key, each in sets.items()}
    print(f"\n{op}: the Gaussian prior of the measurements' covariance\n")
    table({"gaussian": [row]}, tuple(row))


def picture(seed: str, out: Path, path: Path) -> None:
    """What the two runs of flowdiff show of held-out digits, one above the other."""
    from PIL import Image

    parts = []
    for op in NOISE:
        with Image.open(out / f"fd-{op}-{seed}" / "samples" / "restored.png") as image:
            parts.append(image.convert("RGB"))
    whole = Image.new("RGB", (max(p.width for p in parts), sum(p.height + 8 for p in parts) - 8), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height + 8
    whole.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/restore"))
    parser.add_argument("--operators", default="noise,inpaint")
    parser.add_argument("--only", choices=("priors", "restorers", "start"))
    parser.add_argument("--have", action="store_true")
    parser.add_argument(
        "--picture", type=Path, help="write truth, measured, mean, draw and deviation of both runs here"
    )
    given = parser.parse_args()
    seeds = given.seeds.split(",")
    for op in given.operators.split(","):
        if given.only in (None, "start"):
            start(op)
        if given.only in (None, "priors"):
            priors(op, seeds, given.out, have=given.have)
        if given.only in (None, "restorers"):
            restorers(op, seeds[0], given.out, have=given.have)
    if given.picture:
        picture(seeds[0], given.out, given.picture)


if __name__ == "__main__":
    main()
