"""Test T of FlowDiff's notes, and its negative control: four modes learned from noisy points alone.

    python benchmarks/flowdiff.py [--steps 6000] [--out runs/flowdiff-toy]

Prints the deviation within modes (clean .200, noisy .538) and the sliced W1 to clean points of samples of the learned
prior, with and without the entropy term. Resumable: run it again to go on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from gentk.data import load
from gentk.metrics.points import sliced_wasserstein
from gentk.recipe.schema import Data

CENTRES = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]])


def within(x: torch.Tensor) -> float:
    """Root mean square per coordinate of the distance to the mean of the points that are nearest to a mode."""
    nearest = torch.cdist(x, CENTRES).argmin(1)
    parts = [x[nearest == k] - x[nearest == k].mean(0) for k in range(4)]
    return float(torch.cat(parts).square().mean().sqrt())


def prior(run: Path, draws: int) -> torch.Tensor:
    out = run / "drawn"
    model = run / "export" / "prior.safetensors"
    words = ["sample", "heun", "--model", str(model), "-n", str(draws), "--nfe", "35", "--out", str(out), "--quiet"]
    subprocess.run([sys.executable, "-m", "gentk", *words], check=True, stdout=subprocess.DEVNULL)
    with np.load(out / "samples.npz") as held:
        return torch.from_numpy(held["samples"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--out", type=Path, default=Path("runs/flowdiff-toy"))
    given = parser.parse_args()
    clean = load(Data(name="points:cross4", points=5000), "test").x
    noisy = clean + 0.5 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    other = load(Data(name="points:cross4", points=5000), "train").x
    for name, x in (("clean", other), ("noisy", noisy)):
        print(f"{name:16} std {within(x):.3f}  W1 {sliced_wasserstein(x, clean, 1):.3f}", flush=True)
    for name, own in (("joint", []), ("no entropy", ["--set", "method.lambda_entropy=0.0"])):
        run = given.out / f"{name.replace(' ', '-')}-{given.steps}"
        words = [
            "restore",
            "flowdiff",
            "--data",
            "points:cross4",
            "--set",
            "data.points=50000",
            "--set",
            f"train.steps={given.steps}",
            *own,
        ]
        subprocess.run(
            [sys.executable, "-m", "gentk", *words, "--out", str(run)], check=True, stdout=subprocess.DEVNULL
        )
        x = prior(run, 5000)
        print(f"{name:16} std {within(x):.3f}  W1 {sliced_wasserstein(x, clean, 1):.3f}", flush=True)


if __name__ == "__main__":
    main()
