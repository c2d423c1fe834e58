"""What attacks make of the defences on the testbed: masking, frozen noise, eps; in the reference table's direction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gentk.attacks.ball import Ball
from gentk.attacks.pgd import Pgd, pgd, predictions
from gentk.defences.one_shot import OneShot
from gentk.defences.purified import PurifiedClassifier
from gentk.defences.scoreopt import ScoreOpt
from gentk.metrics.robustness import accuracy, flags, scores
from tests.attacks.differences import larger, near
from tests.defences.testbed import density, digits, victim

FROZEN: dict[str, Any] = {"resample_t": False, "resample_noise": False, "over_t2": True, "final": True}


def left(of: PurifiedClassifier, *, n: int = 64, eps: float = 0.2, known: bool = False, **own: Any) -> Tensor:
    """The share of right draws of n images after 20 steps, image by image (N,), over six draws (the attack's one draw,
    where it knows the noise)."""
    x, y, ids = digits()[2][:n], digits()[3][:n], torch.arange(n)
    moved = pgd(of, x, y, ids, Pgd(Ball("linf", eps), 20, eps / 4, **own), seed=0) if eps else x
    seed, draws = (0, 1) if known else (10_000, 6)
    return scores(predictions(of, moved, ids, seed=seed, draws=draws), y, worst_of=1)["average"]


def means(found: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(share.mean()) for name, share in found.items()}


def test_scoreopt_hides_its_gradient_and_the_surrogate_finds_it() -> None:
    """Trap 4: N's exact gradient does worse than BPDA; 85.9, 62.3 and 42.1 per cent in the reference table."""
    n = PurifiedClassifier(victim(), 10, ScoreOpt(density(), t0=0.5, iters=5, lr=0.1, **FROZEN))
    found = {grad: left(n, grad=grad) for grad in ("full", "bpda", "blind")}
    (flag,) = flags(means(found))
    assert flag.name == "masked"
    assert not flag.answered
    found["surrogate"] = left(n, grad="surrogate", eot=5)
    assert larger(found["full"], found["blind"])
    assert larger(found["full"], found["bpda"])
    assert larger(found["bpda"], found["surrogate"])
    assert larger(found["blind"], found["surrogate"])
    (flag,) = flags(means(found))
    assert flag.answered
    for name, reference in {"full": 0.859, "bpda": 0.623, "blind": 0.632, "surrogate": 0.421}.items():
        assert near(means(found)[name], 64, reference, 128), name


def test_one_shot_does_not() -> None:
    """Full gradient 39.9, BPDA 53.9, blind 54.6: the more an attacker knows, the less is left; 97 clean, 0.8 bare."""
    it = PurifiedClassifier(victim(), 10, OneShot(density(), 0.5))
    full, blind = left(it, eot=5), left(it, grad="blind")
    found = means({"full": full, "blind": blind, "clean": left(it, eps=0.0)})
    assert larger(blind, full)
    for name, reference in {"full": 0.422, "blind": 0.546, "clean": 0.954}.items():  # full: that of five draws
        assert near(found[name], 64, reference, 128), name
    assert flags({"full": found["full"], "blind": found["blind"]}, clean=found["clean"]) == ()


def test_an_attacker_who_knows_the_noise_is_stronger_on_it() -> None:
    """Trap 7: 39.0 on the shared frozen noise, 58.2 on fresh noise, the same images."""
    it = PurifiedClassifier(victim(), 10, OneShot(density(), 0.5))
    assert larger(left(it, frozen=True), left(it, frozen=True, known=True))


@pytest.mark.parametrize("method", ["one-shot", "scoreopt-o"])
def test_accuracy_falls_with_eps_to_nothing(method: str) -> None:
    """The reference at t0 0.5: 98.6, 89.5, 10.2, 0 for O under blind PGD at eps 0, 0.1, 0.3, 1."""
    made = OneShot(density(), 0.5) if method == "one-shot" else ScoreOpt(density(), t0=0.5, iters=5, lr=0.1)
    it = PurifiedClassifier(victim(), 10, made)
    curve = {eps: left(it, eps=eps, grad="blind") for eps in (0.0, 0.1, 0.3, 1.0)}
    assert flags({}, curve=[(eps, accuracy(found)) for eps, found in curve.items()]) == ()
    assert larger(curve[0.0], curve[0.1])
    assert larger(curve[0.1], curve[0.3])
    reference = {0.0: 0.954} if method == "one-shot" else {0.0: 0.986, 0.1: 0.895, 0.3: 0.102, 1.0: 0.0}
    for eps, share in reference.items():
        assert near(float(curve[eps].mean()), 64, share, 128), eps
