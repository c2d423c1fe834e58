"""When a difference of two shares is one: by its own standard error, not by a figure that happened to fit."""

from __future__ import annotations

import math

from torch import Tensor

_ERRORS = 3.0  # standard errors: one in 740 by chance


def larger(first: Tensor, second: Tensor) -> bool:
    """Whether scores `first` (N,) lie above `second` on the same images by more than three standard errors.

    Of the paired difference: images differ in how hard they are, and that is in neither.
    """
    d = first.double() - second.double()
    return float(d.mean()) > _ERRORS * float(d.std()) / math.sqrt(len(d))


def near(share: float, n: int, reference: float, m: int) -> bool:
    """Whether two independent measurements of one share, on n and m images, lie within three standard errors.

    Of their difference under the pooled share, and no less than one image's worth.
    """
    p = (share * n + reference * m) / (n + m)
    return abs(share - reference) <= _ERRORS * math.sqrt(max(p * (1 - p), 1 / n) * (1 / n + 1 / m))
