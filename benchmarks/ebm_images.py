"""Energies of images: DCD against CD at equal computing time, by the PSNR of denoised test images and the samples.

    python benchmarks/ebm_images.py --out images.json --data digits [--methods dcd,cd] [--seconds 60] [--keep FOLDER]
                                    [--own '{"step_size": 0.03}'] [--only-denoise]
    python benchmarks/ebm_images.py --out images.json --table

The same U-Net energy with the same noise levels for both, `--seconds` of CPU time on one thread each (wall time
would measure what else the machine does). Both are time-dependent: denoising is Tweedie's formula at the noise's level.
Models go to `--keep`, as files that `gentk sample annealed-langevin --model FILE` and `gentk evaluate ood` take.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from ebm import fit

from gentk.engine import pictures
from gentk.nets import weights
from gentk.recipe import registry
from gentk.tasks.train_ebm._fitting import Fitting
from gentk.tasks.train_ebm._showing import Showing

METHODS: dict[str, dict[str, Any]] = {
    "dcd": {"name": "dcd", "estimator": "one-step", "sigma": 0.1},
    "cd": {"name": "cd", "steps": 5, "step_size": 0.1},
}
# net and measurement; smaller for 28 pixels, where a step costs twelve times as much
SUBJECTS: dict[str, dict[str, Any]] = {
    "digits": {"width": 16, "features": "classifier-digits", "n": 400, "longer": 10},
    "mnist": {"width": 8, "features": "identity", "n": 100, "longer": 0},
    "fashion-mnist": {"width": 8, "features": "identity", "n": 100, "longer": 0},
}
LEVELS = {"low": 0.03, "high": 3.0, "count": 30}
NOISE = (0.3, 0.6, 1.0)


def build(name: str, data: str, seed: int, settings: dict[str, Any]) -> Fitting:
    own = SUBJECTS[data]
    section = registry.recipe_schema("train-ebm", METHODS[name]["name"])(
        task="train-ebm",
        about="a benchmark",
        size="laptop",
        seed=seed,
        data={"name": data},
        net={"name": "energy-unet", "width": own["width"], "multipliers": (1, 2)},
        method=METHODS[name] | {"levels": LEVELS} | settings,
        optim={"lr": 2e-3, "betas": (0.9, 0.99), "clip": 10.0},
        train={"steps": 1, "batch": 64},
        measure={
            "features": own["features"],
            "n": own["n"],
            "longer": own["longer"],
            "steps": 5,
            "levels": 15,
            "step_size": 0.3,
            "denoise": NOISE,
        },
    )
    built = registry.method_module("train-ebm", METHODS[name]["name"]).build(section, torch.device("cpu"))
    assert isinstance(built, Fitting)
    return built


def table(rows: list[dict[str, Any]]) -> str:
    """PSNR in dB of each method beside the noisy input and the tuned blur; FD where it was measured."""
    lines = [
        "| data | method | CPU s | steps | " + " | ".join(f"PSNR, noise {s:g}" for s in NOISE) + " | FD | FD, long |"
    ]
    lines.append("|---" * (6 + len(NOISE)) + "|")
    for row in rows:
        figures = row["figures"]

        def cells(name: str, figures: dict[str, float] = figures) -> str:
            return " | ".join(f"{figures[f'{name}_{s:g}']:.2f}" for s in NOISE)

        fds = " | ".join(f"{figures[k]:.1f}" if k in figures else "" for k in ("fd", "fd_long"))
        name = " ".join([row["method"], *(f"{k}={v}" for k, v in row.get("own", {}).items())])
        lines.append(f"| {row['data']} | {name} | {row['seconds']:g} | {row['steps']} | {cells('psnr')} | {fds} |")
        if row["method"] == "dcd":
            lines.append(f"| {row['data']} | noisy input | | | {cells('psnr_noisy')} | | |")
            lines.append(f"| {row['data']} | tuned blur | | | {cells('psnr_blur')} | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--own", type=json.loads, default={}, help='settings: {"step_size": 0.03}')
    parser.add_argument("--only-denoise", action="store_true", help="no samples are drawn")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(given.out.read_text()) if given.out.exists() else []
    for name in [] if given.table else given.methods.split(","):
        key = {
            "data": given.data,
            "method": name,
            "seed": given.seed,
            "seconds": given.seconds,
            "own": given.own,
        }
        if any(all(row.get(k, {}) == v for k, v in key.items()) for row in rows):
            continue
        method = build(name, given.data, given.seed, given.own)
        net, steps = fit(method, given.seconds, given.seed, batch=64)
        if given.keep:
            header = method.header()
            weights.save(given.keep / f"{given.data}-{name}.safetensors", net, header)
        shown = Showing(method, net)
        figures, drawn = (
            shown._denoised(NOISE) if given.only_denoise else (lambda r: (r.metrics, r.pictures))(shown.all())
        )
        if given.keep:
            for title, picture in drawn.items():
                pictures.save(picture, given.keep / f"{given.data}-{name}-{title.replace(' ', '-')}.png")
        rows.append(key | {"steps": steps, "figures": figures})
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
        print(rows[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
