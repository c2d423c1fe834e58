"""Scores of pictures, and of pictures with their prompts, by networks that learnt what people prefer.

Each module's `build` returns a frozen network: `score(images, prompts)` is (N,) float32, larger is better, and
`score.record` says what it was measured with. `images` (N, 3, H, W) are uint8, for the figure that papers print, or
float in [0, 1], which keeps the gradient (`pixels.py` says how the two differ).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Reward(Protocol):
    """What the modules here build."""

    record: dict[str, Any]

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(N, 3, H, W) images and N prompts -> (N,) float32."""
