"""Robust accuracy against known figures: a table of defences on digits, and published classifiers under PGD.

    python benchmarks/robustness.py table [--images 128] [--only scoreopt-n] [--out runs/robustness.json]
    python benchmarks/robustness.py randomness [--images 64]
    GENTK_DATA=... python benchmarks/robustness.py victims [--images 500]

`table`: an exact denoiser (of a kernel density on 1,400 digits) purifies in front of a small CNN, attacked at eps 0.2
by 30 steps of PGD; each cell is single draw / average of 20 / worst of 10 / vote of 20, with the reference beside it,
which is another run of the same on another CNN. `randomness`: Purify++ by noise level and lambda, against a blind
attack, its exact gradient over ten draws and one, and one that knows the noise. `victims`: PGD of as many steps as
$GENTK_DATA's README says. What is done is kept in --out, so that a stopped run goes on.
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
from gentk.metrics.robustness import accuracy, flags, half_width, scores  # noqa: E402
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
    rules = {rule: float(found[rule].mean()) for rule in RULES}
    return {"rules": rules, "images": found["average"].tolist(), "seconds": seconds}


def inside(ours: float, n: int, reference: float, m: int = REFERENCE_IMAGES) -> bool:
    """Whether two measurements of one share, on `n` and on `m` images, differ by less than 95 % of such pairs do."""
    p = (ours * n + reference * m) / (n + m)
    return abs(ours - reference) <= 1.96 * math.sqrt(max(p * (1 - p), 1 / n) * (1 / n + 1 / m)) + 1e-9


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
            if "images" not in done.get(key, {}):
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
        answers = {a.partition(" ")[0]: done[key] for a in ATTACKS if (key := f"{name}/{a}/{len(x)}") in done}
        average = {a: found["rules"]["average"] for a, found in answers.items()}  # full: that of ten draws, the last
        shares = {a: torch.tensor(found["images"]) for a, found in answers.items()}
        doubt = half_width(shares["full"], shares["surrogate"]) if "surrogate" in shares else 0.0
        for flag in flags(average, clean=done[f"{name}/clean/{len(x)}"]["rules"]["average"], doubt=doubt):
            print(f"\n{name}: {flag.words}\n")
    print(f"\n{outside} of {cells} figures differ from the reference beyond what 95 % of pairs would")


# shared/methods/purify_pp.md, section 3.3: t*, then lambda: percent right clean, blind, full over ten draws; 64 images.
LAMBDAS = (0.0, 0.5, 1.0, 3.0)
BY_LEVEL: dict[float, tuple[tuple[float, float, float], ...]] = {
    0.35: ((96.9, 38.8, 34.0), (97.0, 48.1, 38.8), (97.0, 52.3, 43.5), (96.6, 58.1, 48.4)),
    0.5: ((94.6, 47.4, 41.3), (94.7, 52.2, 42.9), (94.6, 54.3, 44.4), (94.5, 56.2, 45.9)),
    0.75: ((87.3, 44.9, 37.3), (87.9, 47.0, 36.1), (87.8, 47.2, 38.0), (87.7, 47.1, 39.3)),
}


def randomness(given: argparse.Namespace) -> None:
    done: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    _, _, x, y = testbed.digits()
    x, y, ids = x[: given.images], y[: given.images], torch.arange(given.images)
    net, d = testbed.victim(), testbed.density()
    print(f"{len(x)} digits, eps {EPS}, 6 steps of the purifier, average of 20 draws; reference in brackets\n")
    print("| t* | lambda | clean | blind | full K10 | full K1 | noise known, on it | noise known, on fresh |")
    print("|" + "---|" * 8)
    attacks = {"blind": {"grad": "blind"}, "full": {"eot": 10}, "single": {}, "frozen": {"frozen": True}}
    outside = 0
    for t_star, rows in BY_LEVEL.items():
        for lam, reference in zip(LAMBDAS, rows, strict=True):
            key = f"randomness/{t_star}/{lam}/{len(x)}"
            if key not in done:
                purifier = PurifyPP(d, t_star, 6, t_min=0.02, solver="exponential", langevin=lam)
                victim, found = PurifiedClassifier(net, 10, purifier), {}
                for name, own in (("clean", None), *attacks.items()):
                    ball = Ball("linf", EPS)
                    moved = x if own is None else pgd(victim, x, y, ids, Pgd(ball, STEPS, STEP, **own), seed=0)  # type: ignore[arg-type]
                    answers = predictions(victim, moved, ids, seed=10_000, draws=20)
                    found[name] = float((answers == y[:, None]).double().mean())
                    if name == "frozen":
                        known = predictions(victim, moved, ids, seed=0, draws=1)
                        found["known"] = float((known == y[:, None]).double().mean())
                done[key] = found
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(json.dumps(done, indent=1))
            found, words = done[key], []
            for name, stated in zip(("clean", "blind", "full"), reference, strict=True):
                fits = inside(found[name], len(x), stated / 100, 64)
                outside += not fits
                words.append(f"{100 * found[name]:.1f} ({stated:.1f}){'' if fits else ' !'}")
            words += [f"{100 * found[name]:.1f}" for name in ("single", "known", "frozen")]
            print(f"| {t_star} | {lam:g} | " + " | ".join(words) + " |", flush=True)
    print(f"\n{outside} of 36 figures differ from the reference beyond what 95 % of pairs would")


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
    parser.add_argument("what", choices=("table", "randomness", "victims"))
    parser.add_argument("--images", type=int, default=None)
    parser.add_argument("--only", help="one defence, or one classifier")
    parser.add_argument("--out", type=Path, default=Path("runs/robustness.json"))
    given = parser.parse_args()
    given.images = given.images or {"table": 128, "randomness": 64, "victims": 500}[given.what]
    {"table": table, "randomness": randomness, "victims": victims}[given.what](given)


if __name__ == "__main__":
    main()
