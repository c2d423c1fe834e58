from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from gentk import data
from gentk.recipe.schema import Data


def test_bytes_counts_and_kind() -> None:
    train, test = data.load(Data(name="digits"), "train"), data.load(Data(name="digits"), "test")
    assert len(train) + len(test) == 1797
    for part in (train, test):
        assert part.x.dtype == torch.uint8
        assert part.shape == (1, 8, 8)
        assert part.kind == "image"
        assert part.classes == 10
        assert part.y is not None
        assert part.y.dtype == torch.int64
        assert part.y.unique().tolist() == list(range(10))
        # round(255 v / 16) for v = 0..16, by hand at both ends and around the middle
        assert {0, 16, 32, 112, 128, 143, 239, 255} <= set(part.x.unique().tolist())
        assert len(part.x.unique()) == 17


def test_every_fifth_of_each_class_in_file_order_is_test() -> None:
    raw = load_digits()
    seen = [0] * 10
    kept = []
    for i, label in enumerate(raw.target):
        if seen[label] % 5 == 0:
            kept.append(i)
        seen[label] += 1
    test = data.load(Data(name="digits"), "test")
    assert test.y is not None
    assert test.y.tolist() == raw.target[kept].tolist()
    assert np.array_equal(test.x[:, 0].numpy(), np.rint(raw.images[kept] * 255 / 16))
