"""Robust accuracy said honestly: success rules, intervals, paired comparisons, the minimum over attacks, and red flags.

A defence that draws noise has no one accuracy: it depends on whether an image must be right once, on average, on every
retry or by a vote. All figures are upper bounds: a better attack can only lower them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from scipy.stats import binom
from torch import Tensor

from gentk.errors import RunFailed
from gentk.metrics.intervals import Interval, wilson

Scores = dict[str, Tensor]
"""How right each image is by each success rule: (N,) float64 in [0, 1] by the rule's name."""

_POINTS = 0.03  # what two attacks may differ by without a reason


def scores(predictions: Tensor, labels: Tensor, *, worst_of: int = 10) -> Scores:
    """The four success rules for predictions (N, n) on n fresh draws and labels (N,).

    `single`: the first draw. `average`: the share of right draws. `worst-of-K`: right on all of the first K, what is
    left under an attacker who submits K times. `vote-n`: the true class has more votes than any other. Raises RunFailed
    for K > n.
    """
    n = predictions.shape[1]
    if worst_of > n:
        raise RunFailed(f"worst-of-{worst_of} needs as many draws, there are {n}", hint="set scoring.draws or worst_of")
    labels = labels.to(predictions.device)
    right = predictions == labels[:, None]
    classes = int(max(int(predictions.max()), int(labels.max()))) + 1
    votes = torch.nn.functional.one_hot(predictions, classes).sum(1)
    own = votes.gather(1, labels[:, None])
    most = votes.scatter(1, labels[:, None], -1).amax(1)
    found = {
        "single": right[:, 0],
        "average": right.double().mean(1),
        f"worst-of-{worst_of}": right[:, :worst_of].all(1),
        f"vote-{n}": own[:, 0] > most,
    }
    return {name: value.double() for name, value in found.items()}


def minimum(attacks: Iterable[Scores]) -> Scores:
    """For each image and rule the least score over all attacks: what survives every one of them."""
    found = list(attacks)
    return {rule: torch.stack([each[rule] for each in found]).amin(0) for rule in found[0]}


def accuracy(score: Tensor, *, level: float = 0.95) -> Interval:
    """The mean of scores (N,) with Wilson's interval for N independent images.

    N is the number of images, not of draws: the draws of an image are worth no more images.
    """
    return wilson(float(score.sum()), len(score), level=level)


class Denominators(NamedTuple):
    """A robust accuracy, and what is left of the images that were right before the attack."""

    of_all: Interval
    of_right: Interval | None


def denominators(attacked: Tensor, clean: Tensor, *, level: float = 0.95) -> Denominators:
    """Both denominators of an attack from scores (N,) after and before: all images, and those right when clean.

    1 - of_right is the attack's success rate; images that were wrong anyway are no success. None: no image was right.
    """
    right = clean > 0.5
    kept = accuracy(attacked[right], level=level) if bool(right.any()) else None
    return Denominators(accuracy(attacked, level=level), kept)


class McNemar(NamedTuple):
    """Images that only the first and only the second got right, and the two-sided exact p-value of no difference."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Tensor, second: Tensor) -> McNemar:
    """The paired test of two defences (or attacks) on the same images, by scores (N,) that are 0 or 1.

    Given that they disagree, which one is right is a fair coin under the null. Raises RunFailed for scores that are
    shares, or of unequal numbers.
    """
    if len(first) != len(second):
        raise RunFailed(
            f"{len(first)} and {len(second)} images are not paired", hint="the same images, in the same order"
        )
    if not all(bool(((x == 0) | (x == 1)).all()) for x in (first, second)):
        raise RunFailed(
            "McNemar's test counts images as right or wrong", hint="the rule `average` has shares: use another"
        )
    b, c = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    p = 1.0 if b + c == 0 else min(1.0, 2 * float(binom.cdf(min(b, c), b + c, 0.5)))
    return McNemar(b, c, p)


@dataclass(frozen=True)
class Flag:
    """A sign that an evaluation is not to be trusted, in words; `answered` where another attack has dealt with it."""

    name: str
    words: str
    answered: bool = False


def flags(
    attacks: Mapping[str, float],
    *,
    one_step: float | None = None,
    curve: Sequence[tuple[float, Interval]] = (),
    clean: float | None = None,
    doubt: float = 0.0,
) -> tuple[Flag, ...]:
    """Every red flag of robust accuracies (in [0, 1], one rule for all) by the attack's name.

    Names that count: `blind`, `bpda`, `full` (any gradient of the whole pipeline), `surrogate`, `square`. `one_step` is
    the full gradient's accuracy after one step of eps; `curve` holds (eps, accuracy) of one attack on the same images;
    `doubt` is `half_width` of full and surrogate, within which they do not differ.
    """
    found = [*_masked(attacks, doubt), *_beaten_by_square(attacks)]
    full = attacks.get("full")
    if one_step is not None and full is not None and one_step < full - _POINTS:
        found.append(
            Flag(
                "one-step",
                f"one step leaves {_percent(one_step)}, many steps {_percent(full)}: the loss surface is rough",
            )
        )
    found += _bent(sorted(curve))
    if clean is not None and attacks and min(attacks.values()) > clean + _POINTS:
        least = min(attacks, key=lambda name: attacks[name])
        found.append(
            Flag(
                "above-clean", f"{least} leaves {_percent(attacks[least])}, more than without attack: {_percent(clean)}"
            )
        )
    return tuple(found)


def half_width(first: Tensor, second: Tensor) -> float:
    """Half of the 95 % interval of the mean difference of two scores (N,) of the same images."""
    d = first.double() - second.double()
    return 1.96 * float(d.std()) / math.sqrt(len(d))


def _masked(attacks: Mapping[str, float], doubt: float) -> list[Flag]:
    """The gradient of the whole defence must do no worse than gradients that know less."""
    surrogate = attacks.get("surrogate")
    weaker = {name: attacks[name] for name in ("blind", "bpda") if name in attacks}
    if "full" not in attacks or not weaker:
        return []
    name = min(weaker, key=lambda n: weaker[n])
    full, least = attacks["full"], weaker[name]
    if full <= least + _POINTS:
        if surrogate is None or full <= surrogate + max(_POINTS, doubt):
            return []
        words = (
            f"gradient masking: the full gradient leaves {_percent(full)}, that of a cheaper surrogate "
            f"{_percent(surrogate)}: the second is the figure that says something about the defence"
        )
        return [Flag("masked", words, answered=True)]
    words = (
        f"gradient masking: the full gradient leaves {_percent(full)}, {name}, which knows less, {_percent(least)}: the"
        " defence hides its gradient, and the first figure says nothing about its robustness"
    )
    if surrogate is None:
        return [Flag("masked", f"{words}; a surrogate attack is needed")]
    if surrogate > least + _POINTS:
        return [Flag("masked", f"{words}; the surrogate attack, {_percent(surrogate)}, is no better")]
    return [Flag("masked", f"{words}; the surrogate attack gets around that: {_percent(surrogate)}", answered=True)]


def _beaten_by_square(attacks: Mapping[str, float]) -> list[Flag]:
    gradients = {n: a for n, a in attacks.items() if n in ("full", "bpda", "surrogate", "blind")}
    if "square" not in attacks or not gradients:
        return []
    best = min(gradients, key=lambda n: gradients[n])
    if attacks["square"] >= gradients[best] - _POINTS:
        return []
    return [
        Flag(
            "square",
            f"random search without gradients leaves {_percent(attacks['square'])}, the best gradient ({best}) "
            f"{_percent(gradients[best])}: gradients are masked or the attack too weak",
        )
    ]


def _bent(curve: Sequence[tuple[float, Interval]]) -> list[Flag]:
    found = []
    for (eps, low), (more, high) in pairwise(curve):
        reach = math.hypot((low.high - low.low) / 2, (high.high - high.low) / 2)
        if high.value - low.value > reach:
            found.append(
                Flag(
                    "not-monotone",
                    f"more accurate at eps {more:g} ({_percent(high.value)}) than at {eps:g} ({_percent(low.value)}): "
                    "the attack fails at the larger one",
                )
            )
    if curve and curve[-1][0] >= 1 and curve[-1][1].value > 0.02:
        found.append(
            Flag(
                "unbounded",
                f"{_percent(curve[-1][1].value)} right at eps 1, where any image is allowed: the attack does not work",
            )
        )
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
