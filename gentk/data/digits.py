"""The handwritten digits that scikit-learn ships: 1797 grey images of 8 x 8 pixels, 17 grey values, 10 classes.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gentk.data.arrays import Arrays, Split, labelled
from gentk.recipe.schema import Data


def read(section: Data, split: Split) -> Arrays:
    """Bytes round(255 v / 16), x (N, 1, 8, 8). The test split is every fifth sample of each class, in file order."""
    from sklearn.datasets import load_digits  # a second of imports that the other data sets do without

    bunch = load_digits()
    x = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    y = bunch.target
    rank = np.empty_like(y)
    for label in range(10):
        members = np.flatnonzero(y == label)
        rank[members] = np.arange(len(members))
    keep = (rank % 5 == 0) == (split == "test")
    return labelled(x[keep], y[keep], 10, Path("sklearn.datasets.load_digits"))
