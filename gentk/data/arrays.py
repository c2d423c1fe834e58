"""What a reader of a data set hands over, and the checks that all labelled sets share."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gentk.errors import RunFailed

Split = Literal["train", "test"]


class Arrays(NamedTuple):
    """One split: x uint8 (N, C, H, W) or float32 (N, 2); y int64 (N,) in [0, classes), or None with classes 0."""

    x: Tensor
    y: Tensor | None
    classes: int


def labelled(x: NDArray[np.uint8], y: NDArray[np.integer], classes: int, where: Path) -> Arrays:
    """`x` (N, C, H, W) with labels `y` (N,) as tensors. Raises RunFailed, naming `where`, if the two do not fit."""
    if len(x) != len(y):
        raise RunFailed(f"{where}: {len(y)} labels for {len(x)} images")
    wrong = (y < 0) | (y >= classes)
    if wrong.any():
        at = int(wrong.argmax())
        raise RunFailed(f"{where}: label {at} is {y[at]}, outside 0..{classes - 1}")
    # Arrays that view a file's bytes are read-only, and torch would write through them: those are copied.
    return Arrays(
        torch.from_numpy(np.require(x, requirements=("C", "W"))), torch.from_numpy(y.astype(np.int64)), classes
    )
