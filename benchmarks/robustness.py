"""Robust accuracy against known figures: a table of defences on digits, and published classifiers under PGD.

    python benchmarks/robustness.py table [--images 128] [--only scoreopt-n] [--out runs/robustness.json]
    GENTK_DATA=... python benchmarks/robustness.py victims [--images 500]

`table`: an exact denoiser (of a kernel density on 1,400 digits) purifies in front of a small CNN, attacked at eps 0.2
by 30 steps of PGD; each cell is single draw / average of 20 / worst of 10 / vote of 20, with the reference beside it,
which is another run of the same on another CNN. `victims`: PGD of as many steps as $GENTK_DATA's README says. What is
done is kept in --out, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gentk import data  # noqa: E402
from gentk.attacks.ball import Ball  # noqa: E402
from gentk.attacks.pgd import Pgd, pgd, predictions  # noqa: E402
from gentk.attacks.victim import Undefended, Victim  # noqa: E402
from gentk.defences.one_shot import OneShot  # noqa: E402
from gentk.defences.purified import PurifiedClassifier  # noqa: E402
from gentk.defences.purify_pp import PurifyPP  # noqa: E402
from gentk.defences.scoreopt import ScoreOpt  # noqa: E402
from gentk.metrics.robustness import accuracy, flags, scores  # noqa: E402
from gentk.nets.image_classifier import PRETRAINED, pretrained  # noqa: E402
from gentk.recipe.schema import Data  # noqa: E402
from tests.defences import testbed  # noqa: E402

EPS, STEPS, STEP = 0.2, 30, 0.025
RULES = ("single", "average", "worst-of-10", "vote-20")
ATTACKS: dict[str, dict[str, Any]] = {
    "blind": {"grad": "blind"},
    "bpda K10": {"grad": "bpda", "eot": 10},
    "surrogate K10": {"grad": "surrogate", "eot": 10},
    "full K1": {"grad": "full"},
    "full K10": {"grad": "full", "eot": 10},
}
# shared/methods/robust_evaluation.md, section 4: percent right of 128 images by the four rules, h = 0.27.
REFERENCE: dict[str, dict[str, tuple[float, ...]]] = {
    "one-shot": {
        "clean": (97.7, 95.4, 82.0, 99.2),
        "blind": (57.0, 54.6, 7.0, 60.2),
        "bpda K10": (57.0, 53.9, 7.8, 58.6),
        "full K1": (54.7, 50.9, 11.7, 52.3),
        "full K10": (44.5, 39.9, 4.7, 37.5),
    },
    "ode-8": {
        "clean": (98.4, 95.4, 81.2, 99.2),
        "blind": (52.3, 48.5, 5.5, 52.3),
        "bpda K10": (50.8, 46.7, 4.7, 52.3),
        "full K1": (49.2, 46.7, 7.0, 52.3),
        "full K10": (46.1, 40.8, 3.1, 43.0),
    },
    "sde-8": {
        "clean": (96.9, 95.6, 82.0, 99.2),
        "blind": (56.2, 57.1, 12.5, 66.4),
        "bpda K10": (57.8, 55.9, 13.3, 64.8),
        "full K1": (56.2, 55.9, 14.8, 63.3),
        "full K10": (48.4, 45.5, 5.5, 50.0),
    },
    "scoreopt-o": {
        "clean": (98.4, 98.6, 94.5, 99.2),
        "blind": (54.7, 55.9, 19.5, 59.4),
        "bpda K10": (57.0, 55.9, 18.0, 57.8),
        "full K1": (71.9, 67.0, 50.0, 67.2),
        "full K10": (62.5, 60.2, 41.4, 57.8),
        "surrogate K10": (39.8, 40.3, 10.2, 39.8),
    },
    "scoreopt-n": {
        "clean": (97.7, 97.2, 86.7, 99.2),
        "blind": (71.1, 63.2, 18.8, 68.8),
        "bpda K10": (63.3, 62.3, 21.9, 68.0),
        "full K1": (89.8, 85.9, 72.7, 89.8),
        "full K10": (85.9, 79.8, 59.4, 82.0),
        "surrogate K10": (43.0, 42.1, 7.8, 43.0),
    },
}
REFERENCE_IMAGES = 128


def defences() -> dict[str, Callable[[], Victim]]:
    """The five, behind the small CNN; ScoreOpt with five steps of 0.1 at noise level 0.5."""
    d = testbed.density()
    fixed = {"resample_t": False, "resample_noise": False, "over_t2": True, "final": True}
    ladder = {"t_star": 0.5, "steps": 8, "t_min": 0.02}
    made = {
        "one-shot": lambda: OneShot(d, 0.5),
        "scoreopt-o": lambda: ScoreOpt(d, t0=0.5, iters=5, lr=0.1),
        "scoreopt-n": lambda: ScoreOpt(d, t0=0.5, iters=5, lr=0.1, **fixed),  # type: ignore[arg-type]
        "ode-8": lambda: PurifyPP(d, **ladder),  # type: ignore[arg-type]
        "sde-8": lambda: PurifyPP(d, **ladder, solver="exponential", langevin=1.0),  # type: ignore[arg-type]
    }
    net = testbed.victim()
    return {name: (lambda make=make: PurifiedClassifier(net, 10, make())) for name, make in made.items()}  # type: ignore[misc]


def cell(victim: Victim, x: Tensor, y: Tensor, attack: dict[str, Any] | None) -> dict[str, Any]:
    ids, begun = torch.arange(len(x)), time.process_time()
    moved = x if attack is None else pgd(victim, x, y, ids, Pgd(Ball("linf", EPS), STEPS, STEP, **attack), seed=0)
    seconds = time.process_time() - begun
    found = scores(predictions(victim, moved, ids, seed=10_000, draws=20), y)
    return {"rules": {rule: float(found[rule].mean()) for rule in RULES}, "seconds": seconds}


def inside(ours: float, n: int, reference: float) -> bool:
    """Whether two measurements of one share, on `n` and on 128 images, differ by less than 95 % of such pairs do."""
    p = (ours * n + reference * REFERENCE_IMAGES) / (n + REFERENCE_IMAGES)
    return abs(ours - reference) <= 1.96 * math.sqrt(max(p * (1 - p), 1 / n) * (1 / n + 1 / REFERENCE_IMAGES)) + 1e-9


def table(given: argparse.Namespace) -> None:
    done: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    _, _, x, y = testbed.digits()
    x, y = x[: given.images], y[: given.images]
    print(f"{len(x)} digits, eps {EPS}, {STEPS} steps; reference in brackets, ! where they differ beyond 95 %\n")
    print("| defence | attack | " + " | ".join(RULES) + " | CPU s |\n|" + "---|" * (len(RULES) + 3))
    outside = cells = 0
    for name, make in defences().items():
        if given.only not in (None, name):
            continue
        victim = make()
        for attack in ("clean", *ATTACKS):
            if attack.startswith("surrogate") and "surrogate" not in victim.modes:
                continue
            key = f"{name}/{attack}/{len(x)}"
            if key not in done:
                done[key] = cell(victim, x, y, ATTACKS.get(attack))
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(json.dumps(done, indent=1))
            ours, reference = done[key]["rules"], REFERENCE[name].get(attack)
            words = []
            for k, rule in enumerate(RULES):
                text = f"{100 * ours[rule]:.1f}"
                if reference is not None:
                    fits = inside(ours[rule], len(x), reference[k] / 100)
                    cells, outside = cells + 1, outside + (not fits)
                    text += f" ({reference[k]:.1f}){'' if fits else ' !'}"
                words.append(text)
            print(f"| {name} | {attack} | " + " | ".join(words) + f" | {done[key]['seconds']:.0f} |", flush=True)
        average = {a.partition(" ")[0]: done[f"{name}/{a}/{len(x)}"]["rules"]["average"] for a in REFERENCE[name]}
        clean = average.pop("clean")
        for flag in flags(average, clean=clean):
            print(f"\n{name}: {flag.words}\n")
    print(f"\n{outside} of {cells} figures differ from the reference beyond what 95 % of pairs would")


# README of $GENTK_DATA: (eps, percent right of the first 500; of 200 for resnet20).
CIFAR, GREY = 255.0, 1.0
PUBLISHED: dict[str, tuple[str, float, int, dict[float, float]]] = {
    "cifar10_resnet20": ("cifar10", CIFAR, 20, {1: 18, 2: 1, 8: 0}),
    "cifar10_resnet4b_adv": ("cifar10", CIFAR, 20, {1: 68.8, 2: 61.4, 4: 41.8, 8: 16.0}),
    "cifar10_cnn_wide_robust": ("cifar10", CIFAR, 20, {1: 59.6, 2: 53.8, 4: 43.4, 8: 24.6}),
    "mnist_cnn_a_adv": ("mnist", GREY, 40, {0.1: 91.8, 0.3: 76.6}),
    "mnist_cnn_kw01": ("mnist", GREY, 40, {0.1: 95.6, 0.3: 0}),
    "fashion_mnist_cnn_kw01": ("fashion-mnist", GREY, 40, {0.1: 69.8}),
}


def victims(given: argparse.Namespace) -> None:
    print("| classifier | eps | steps | images | right under PGD | published | difference |\n|" + "---|" * 7)
    for name, (where, unit, steps, figures) in PUBLISHED.items():
        if given.only not in (None, name):
            continue
        assert name in PRETRAINED
        victim = Undefended(pretrained(name), 10)
        n = 200 if name == "cifar10_resnet20" else given.images
        split = data.load(Data(name=where), "test")
        assert split.y is not None
        ids = torch.arange(n)
        x, y = split.x[:n].float() / 255, split.y[:n]
        for eps, published in figures.items():
            radius = eps / unit
            size = radius / 4 if unit == CIFAR else radius / 10
            settings = Pgd(Ball("linf", radius), steps, size, chunk=100)  # activations of 100 fit the cache
            moved = pgd(victim, x, y, ids, settings, seed=0)
            answers = predictions(victim, moved, ids, seed=10_000, draws=1, chunk=100)
            found = accuracy((answers[:, 0] == y).double())
            words = f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
            label, off = f"{eps:g}/255" if unit == CIFAR else f"{eps:g}", 100 * found.value - published
            print(
                f"| {name} | {label} | {steps} | {n} | {words} | {published:g} | {off:+.1f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "victims"))
    parser.add_argument("--images", type=int, default=None)
    parser.add_argument("--only", help="one defence, or one classifier")
    parser.add_argument("--out", type=Path, default=Path("runs/robustness.json"))
    given = parser.parse_args()
    given.images = given.images or {"table": 128, "victims": 500}[given.what]
    {"table": table, "victims": victims}[given.what](given)


if __name__ == "__main__":
    main()
