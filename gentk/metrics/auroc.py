"""How well one number tells two sets apart: the area under the ROC curve, with its interval."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Auroc(NamedTuple):
    """The area, its standard error, and the ends of the 95 % interval."""

    area: float
    error: float
    low: float
    high: float


def auroc(inside: Tensor, outside: Tensor) -> Auroc:
    """Probability that a score of `outside` (n,) is above one of `inside` (m,), ties counting half.

    The error is DeLong's (1988): each score's share of won pairs is averaged over its own set, and the two variances
    add. The interval is taken on the logit, where it stays within [0, 1]; an area of 0 or 1 has all pairs on one side
    and an upper or lower end by the rule of three, 3 / min(m, n). Raises ValueError below two scores or for NaN.
    """
    a, b = inside.double().flatten(), outside.double().flatten()
    if min(len(a), len(b)) < 2 or bool(a.isnan().any() | b.isnan().any()):
        raise ValueError("two scores or more on each side, none of them NaN")
    won = _shares(b, a)  # of each outside score, over inside ones
    lost = 1 - _shares(a, b)
    area = float(won.mean())
    error = math.sqrt(float(won.var()) / len(b) + float(lost.var()) / len(a))
    if not 0 < area < 1:
        rest = min(1.0, 3 / min(len(a), len(b)))
        return Auroc(area, error, *((0.0, rest) if area <= 0 else (1 - rest, 1.0)))
    middle, half = math.log(area / (1 - area)), 1.96 * error / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-(middle + side * half))) for side in (-1, 1))
    return Auroc(area, error, low, high)


def _shares(scores: Tensor, others: Tensor) -> Tensor:
    """For each score the share of the others below it, equal ones counting half."""
    ordered = others.sort().values
    below, upto = (torch.searchsorted(ordered, scores, right=right) for right in (False, True))
    return (below + upto).double() / (2 * len(others))
