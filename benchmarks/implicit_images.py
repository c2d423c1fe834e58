"""A sampler of one call against Langevin chains on the energy that it was trained for, at equal quality.

python benchmarks/implicit_images.py --sampler runs/sampler --energy runs/dcd-digits --out runs/implicit-images.json

Frechet distance to the training images in the features of `classifier-digits`, precision and recall, and wall time per
draw, all in one process and on one thread, the best of three. Chains go from noise down the energy's noise levels, few
or many steps. Draws per second are compared with the shortest chain that is at least as near, and with all others.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from gentk import data
from gentk.data import to_uint8
from gentk.engine import pictures
from gentk.engine.energetic import Chains, ladder
from gentk.engine.generative import rounded
from gentk.metrics.features import extractor
from gentk.metrics.quality import quality
from gentk.nets.implicit import load
from gentk.processes.energies import load_energy
from gentk.recipe.schema import Data

CPU = torch.device("cpu")
CHAINS = ((4, 1), (6, 1), (8, 1), (11, 1), (15, 1), (15, 2), (15, 5))  # noise levels, steps at each
STEP = 0.3  # the variance of a step's noise over the level's


def timed(draw: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Draws, and the least seconds of three times."""
    least = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        x = draw()
        least = min(least, time.perf_counter() - begun)
    return x, least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sampler", required=True)
    parser.add_argument("--energy", required=True)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--features", default="classifier-digits")
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    train, test = (data.load(Data(name=given.data), split) for split in ("train", "test"))  # type: ignore[arg-type]
    extract = extractor(given.features, shape=train.shape, where=CPU)
    sampler, energy = load(given.sampler), load_energy(given.energy, CPU).net
    rows: list[dict[str, Any]] = []
    shown: dict[str, Tensor] = {}

    def measured(name: str, gradients: int, draw: Callable[[], Tensor]) -> None:
        x, seconds = timed(draw)
        figures = quality(rounded(x), train, test, extract, k=3)
        rows.append({"by": name, "gradients": gradients, "ms": 1000 * seconds / len(x)} | figures)
        shown[name] = x[:50]
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
        print(rows[-1], flush=True)

    @torch.no_grad()
    def once() -> Tensor:
        z = torch.randn(given.n, sampler.net.dim, generator=torch.Generator().manual_seed(0))
        return sampler.net(z).reshape(-1, *train.shape)

    measured("sampler, one call", 0, once)
    for levels, steps in CHAINS:
        chains = Chains(
            energy,  # type: ignore[arg-type]
            train.shape,
            CPU,
            steps=steps,
            step_size=STEP,
            levels=tuple(ladder(energy.levels, levels)),  # type: ignore[arg-type]
        )
        measured(f"{levels} x {steps} steps", chains.nfe, lambda chains=chains: chains(given.n, 0))  # type: ignore[misc]
    own = rows[0]
    print("\n| draws by | gradients | FD | precision | recall | ms a draw | over the sampler's |\n" + "|---" * 7 + "|")
    for row in rows:
        cells = " | ".join(f"{row[k]:.3g}" for k in ("fd", "precision", "recall", "ms"))
        print(f"| {row['by']} | {row['gradients']} | {cells} | {row['ms'] / own['ms']:.0f} |")
    equal = [row for row in rows[1:] if row["fd"] <= own["fd"]]
    if equal:
        least = min(equal, key=lambda row: float(row["ms"]))
        print(f"\nat equal quality ({least['by']}): {least['ms'] / own['ms']:.0f} times the draws per second")
    else:
        print("\nno chain that was tried is as near as the sampler")
    panels = {name: to_uint8(x.clamp(-1, 1)) for name, x in shown.items()}
    pictures.save(pictures.side_by_side(panels), given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
