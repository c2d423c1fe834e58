"""A sampler of one call against Langevin chains on the energy that it was trained for, at equal quality.

gentk distill diff-instruct --teacher energy-digits --out runs/sampler
python benchmarks/implicit_images.py --sampler runs/sampler --energy energy-digits --out runs/implicit-images.json

The sampler is a run of `distill` or of `train implicit-kl`. Frechet distance to the training images in the features of
`classifier-digits`, precision and recall, and wall time per draw, all in one process and on one thread, the best of
three. Chains go from noise down the energy's noise levels, few or many steps; where the energy has a denoiser, Heun's
method on it is there too, which needs fewer gradients than any chain. Draws per second are compared with the shortest
chain that is at least as near (the nearest of all where none is), and with all others.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from gentk import data
from gentk.data import to_uint8
from gentk.engine import pictures
from gentk.engine.energetic import Chains, ladder
from gentk.engine.generative import Sampler, rounded
from gentk.errors import RecipeError
from gentk.metrics.features import extractor
from gentk.metrics.quality import quality
from gentk.nets.implicit import load as load_sampler
from gentk.processes.energies import denoising, load_energy
from gentk.processes.models import load
from gentk.recipe.schema import Data
from gentk.recipe.stamp import read_header
from gentk.recipe.store import model_path

CPU = torch.device("cpu")
# noise levels, steps at each
CHAINS = ((4, 1), (6, 1), (8, 1), (11, 1), (15, 1), (15, 2), (15, 5), (15, 7), (15, 10), (15, 13))
HEUN = (5, 9, 18)  # steps
STEP = 0.3  # the variance of a step's noise over the level's


def timed(draw: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Draws, and the least seconds of three times."""
    least = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        x = draw()
        least = min(least, time.perf_counter() - begun)
    return x, least


def one_call(ref: str, shape: tuple[int, ...]) -> Callable[[int], Tensor]:
    """n -> n draws (n, *shape) by one call of the sampler."""
    header = read_header(model_path(ref))
    if header["kind"] == "generator":
        net: Any = load(ref, kinds=("generator",), where=CPU).net
        sampler = Sampler(net, shape, (), CPU, sigma_init=float(header["sigma_init"]))
        return lambda n: sampler(n, 0)
    implicit = load_sampler(ref).net

    @torch.no_grad()
    def draw(n: int) -> Tensor:
        z = torch.randn(n, implicit.dim, generator=torch.Generator().manual_seed(0))
        out: Tensor = implicit(z).reshape(-1, *shape)
        return out

    return draw


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
    train, test = (data.load(Data(name=given.data), split) for split in ("train", "test"))
    extract = extractor(given.features, shape=train.shape, where=CPU)
    model = load_energy(given.energy, CPU)
    energy, once = model.net, one_call(given.sampler, train.shape)
    rows: list[dict[str, Any]] = []
    shown: dict[str, Tensor] = {}

    def measured(name: str, gradients: int, draw: Callable[[], Tensor]) -> None:
        x, seconds = timed(draw)
        figures = quality(rounded(x), train, test, extract, k=3)
        rows.append({"by": name, "gradients": gradients, "ms": 1000 * seconds / len(x)} | figures)
        shown[name] = x[:50]
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
        print(rows[-1], flush=True)

    measured("sampler, one call", 0, partial(once, given.n))
    for levels, steps in CHAINS:
        chains = Chains(
            energy,  # type: ignore[arg-type]
            train.shape,
            CPU,
            steps=steps,
            step_size=STEP,
            levels=tuple(ladder(energy.levels, levels)),  # type: ignore[arg-type]
        )
        measured(f"{levels} x {steps} steps", chains.nfe, partial(chains, given.n, 0))
    try:
        exact: Any = denoising(model).net
    except RecipeError:
        exact = None
    for steps in HEUN if exact is not None else ():
        heun = Sampler(exact, train.shape, (), CPU, steps=steps)
        measured(f"Heun, {steps} steps", heun.nfe, partial(heun, given.n, 0))
    own = rows[0]
    print("\n| draws by | gradients | FD | precision | recall | ms a draw | over the sampler's |\n" + "|---" * 7 + "|")
    for row in rows:
        cells = " | ".join(f"{row[k]:.3g}" for k in ("fd", "precision", "recall", "ms"))
        print(f"| {row['by']} | {row['gradients']} | {cells} | {row['ms'] / own['ms']:.0f} |")
    chains_of = [row for row in rows if " x " in row["by"]]
    equal = [row for row in chains_of if row["fd"] <= own["fd"]]
    if equal:
        least = min(equal, key=lambda row: float(row["ms"]))
        print(f"\nat equal quality ({least['by']}): {least['ms'] / own['ms']:.0f} times the draws per second")
    else:
        least = min(chains_of, key=lambda row: float(row["fd"]))
        ratio = least["ms"] / own["ms"]
        print(f"\nno chain is as near as the sampler; {ratio:.0f} times the draws per second of the nearest")
    panels = {name: to_uint8(x.clamp(-1, 1)) for name, x in shown.items()}
    pictures.save(pictures.side_by_side(panels), given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
