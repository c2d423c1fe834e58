"""From attack to figures on the digits testbed: rules, minimum, pairs, and what averaging over draws does."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from gentk.attacks.ball import Ball
from gentk.attacks.pgd import predictions
from gentk.attacks.suite import Plan, attack
from gentk.attacks.victim import Undefended, Victim
from gentk.defences.one_shot import OneShot
from gentk.defences.purified import PurifiedClassifier
from gentk.metrics.robustness import Scores, mcnemar, minimum, scores
from tests.attacks.differences import near
from tests.defences import testbed

N, DRAWS = 80, 12
IDS = torch.arange(N)


def images() -> tuple[Tensor, Tensor]:
    _, _, x, y = testbed.digits()
    return x[:N], y[:N]


@functools.cache
def defended() -> Victim:
    return PurifiedClassifier(testbed.victim(), 10, OneShot(testbed.density(), 0.5))


@functools.cache
def judged(name: str, eot: int = 3) -> Scores:
    x, y = images()
    moved = attack(name, defended(), x, y, IDS, Plan(Ball("linf", 0.2), 10, 0.05, eot=eot, seed=0)).x
    return scores(predictions(defended(), moved, IDS, seed=10_000, draws=DRAWS), y)


def test_a_defence_against_none_on_the_same_images() -> None:
    x, y = images()
    bare = Undefended(testbed.victim(), 10)
    moved = attack("pgd", bare, x, y, IDS, Plan(Ball("linf", 0.2), 20, 0.05)).x
    undefended = scores(predictions(bare, moved, IDS, seed=10_000, draws=DRAWS), y)
    assert near(float(undefended["average"].mean()), N, 0.008, 128)  # the reference table's
    found = mcnemar(judged("pgd-eot")["single"], undefended["single"])
    assert found.p < 1e-3
    assert found.only_first > found.only_second


def test_rules_differ_and_the_minimum_is_below_each_attack() -> None:
    found = [judged(name) for name in ("blind", "pgd-eot")]
    least = minimum(found)
    for rule, value in least.items():
        assert float(value.mean()) <= min(float(each[rule].mean()) for each in found)
    # An image that one of its draws loses is lost to who may submit again, and only such: the rules, image by image.
    one = judged("pgd-eot")
    assert bool((one["worst-of-10"] <= one["single"]).all())
    assert bool((one["worst-of-10"] >= (one["average"] == 1).double()).all())
    assert float(least["worst-of-10"].mean()) < float(least["average"].mean())


def test_more_draws_per_gradient_do_more_harm() -> None:
    assert float(judged("pgd-eot", eot=10)["average"].mean()) < float(judged("pgd-eot", eot=1)["average"].mean())
