"""Small convolutional classifier; its last hidden layer is the space of the Frechet distance on small images."""

from __future__ import annotations

from torch import Tensor, nn


class SmallCnn(nn.Module):
    """`net(x)`: (B, C, S, S) in [-1, 1] -> (B, classes) logits; `net.features(x)` -> (B, F), non-negative.

    Three 3x3 convolutions, 2x2 max-pooling after the second (and the third for sides above 16), the feature layer.
    """

    def __init__(self, *, size: int, channels: int, classes: int, width: int, features: int, dropout: float) -> None:
        super().__init__()
        pools = 1 if size <= 16 else 2
        side = size // 2**pools
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2) if pools == 2 else nn.Identity(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width * side * side, features),
            nn.ReLU(),
        )
        self.head = nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        """Images x (B, C, S, S) -> the feature layer (B, F), non-negative."""
        out: Tensor = self.body(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Images x (B, C, S, S) -> logits (B, classes)."""
        out: Tensor = self.head(self.features(x))
        return out
