"""The figures of a generative model in one feature space: Frechet distance, precision, recall, copying."""

from __future__ import annotations

import torch
from torch import Tensor

from gentk.data import DataSet
from gentk.metrics.features import Extractor
from gentk.metrics.frechet import Moments, frechet
from gentk.metrics.neighbours import nearest, precision_recall


def moments(features: Tensor) -> Moments:
    """Mean and covariance of (N, F) features."""
    result = Moments()
    result.update(features)
    return result


def all_of(data: DataSet) -> Tensor:
    """Every sample of a data set, as the feature extractors take them: (N, *shape) float32."""
    return data.batch(torch.arange(len(data)))[0]


def quality(samples: Tensor, train: DataSet, test: DataSet, extract: Extractor, *, k: int) -> dict[str, float]:
    """Figures of `samples` (N, *shape) against a data set.

    fd              Frechet distance to the training split (Heusel et al. 2017); its bias falls as 1/N: compare equal N
    precision       share of samples inside the manifold of the training split (arXiv:1904.06991), in [0, 1]
    recall          share of the training split inside the manifold of the samples, in [0, 1]
    nearest         mean distance of a sample to its nearest training sample
    nearest_test    the same for the held-out split: a model that copies has `nearest` well below it
    """
    fake, real, held = extract(samples), extract(all_of(train)), extract(all_of(test))
    precision, recall = precision_recall(real, fake, k)
    return {
        "fd": frechet(moments(real), moments(fake)),
        "precision": precision,
        "recall": recall,
        "nearest": float(nearest(fake, real).mean()),
        "nearest_test": float(nearest(held, real).mean()),
    }


def halves(train: DataSet, test: DataSet, extract: Extractor, *, rounds: int = 10) -> float:
    """The yardstick: mean Frechet distance between random halves of all the real data."""
    features = torch.cat([extract(all_of(train)), extract(all_of(test))])
    total = 0.0
    for i in range(rounds):
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(i))
        half = len(features) // 2
        total += frechet(moments(features[order[:half]]), moments(features[order[half : 2 * half]]))
    return total / rounds
