"""Inception score: exp of the mean divergence of predicted classes from their average.

Salimans et al. 2016 (arXiv:1606.03498), section 4. It may be called IS only with the predictions of InceptionV3, whose
published figures take 1008 logits without the bias, of 50,000 samples in 10 splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gentk.errors import RunFailed


@dataclass(frozen=True)
class InceptionScore:
    """Mean and spread (division by the number of splits, as the field prints it) of the score over the splits.

    In [1, number of classes], and at most the number of samples of a split. `values` are the splits' own.
    """

    mean: float
    std: float
    values: tuple[float, ...]


def inception_score(logits: Tensor, *, splits: int = 10) -> InceptionScore:
    """From logits (N, C): softmax in float64, then as `inception_score_of`."""
    return _score(part.double().softmax(1) for part in _parts(logits, splits))


def inception_score_of(probabilities: Tensor, *, splits: int = 10) -> InceptionScore:
    """From class probabilities (N, C), in `splits` runs of samples in their order.

    Samples are not shuffled: sort them by class and every split sees few classes, which lowers the score. Raises
    RunFailed for fewer samples than splits, NaN, infinity, or rows that are no probabilities (logits, say).
    """
    return _score(_checked(part.double()) for part in _parts(probabilities, splits))


def _score(parts: Iterator[Tensor]) -> InceptionScore:
    # E_x KL(p(c|x) || p(c)) is the entropy of the average less the average entropy; 0 log 0 is 0.
    scores = torch.stack([(_negentropy(p).mean() - _negentropy(p.mean(0))).exp() for p in parts])
    return InceptionScore(float(scores.mean()), float(scores.std(correction=0)), tuple(scores.tolist()))


def _checked(p: Tensor) -> Tensor:
    if (p < 0).any() or ((p.sum(1) - 1).abs() > 1e-3).any():  # half precision rounds to 1e-3
        raise RunFailed("the rows are no probabilities", hint="for logits there is `inception_score`")
    return p


def _negentropy(p: Tensor) -> Tensor:
    return torch.xlogy(p, p).sum(-1)


def _parts(x: Tensor, splits: int) -> list[Tensor]:
    if x.ndim != 2:
        raise ValueError(f"predictions have shape {tuple(x.shape)}, expected (N, C)")
    if splits < 1:
        raise ValueError(f"{splits} splits, expected at least 1")
    if len(x) < splits:
        raise RunFailed(f"{len(x)} samples are too few for {splits} splits")
    if not x.isfinite().all():
        raise RunFailed("the predictions hold NaN or infinity", hint="the samples or the network are broken")
    ends = [i * len(x) // splits for i in range(splits + 1)]
    return [x[a:b].detach() for a, b in pairwise(ends)]
