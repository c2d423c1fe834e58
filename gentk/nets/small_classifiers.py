"""Small classifiers without batch norm, most of them published for robustness: state-dict compatible with their files.

`TwoConv` is the "small" net of Wong and Kolter 2018 (arXiv:1711.00851), `SmallResNet` the ResNet-4B of Wang et al.
2021 (arXiv:2103.06624).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class TwoConv(nn.Sequential):
    """`net(x)`: images (B, C, S, S) -> logits (B, classes), by two convolutions of stride 2 and two linear layers."""

    def __init__(self, *, channels: int, size: int, classes: int = 10) -> None:
        super().__init__(
            nn.Conv2d(channels, 16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * (size // 4) ** 2, 100),
            nn.ReLU(),
            nn.Linear(100, classes),
        )

    def features(self, x: Tensor) -> Tensor:
        """Images x (B, C, S, S) -> what the last layer sees (B, 100), non-negative."""
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


class ReluMlp(nn.Sequential):
    """`net(x)`: images (B, ...) of widths[0] values -> logits (B, widths[-1]); ReLU between the linear layers."""

    def __init__(self, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*layers[:-1])

    def features(self, x: Tensor) -> Tensor:
        """Images x (B, ...) -> what the last layer sees (B, widths[-2]), non-negative."""
        x = x.flatten(1)
        for layer in list(self)[:-1]:
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Images x (B, ...) -> logits (B, widths[-1])."""
        out: Tensor = self[-1](self.features(x))
        return out


class SmallResNet(nn.Module):
    """`net(x)`: images (B, 3, 32, 32) -> logits (B, classes), by four residual blocks of 32 channels."""

    def __init__(self, *, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(_Block(16, 32, stride=2), _Block(32, 32))
        self.layer2 = nn.Sequential(_Block(32, 32, stride=2), _Block(32, 32))
        self.linear1 = nn.Linear(32 * 4 * 4, 100)
        self.linear2 = nn.Linear(100, classes)

    def features(self, x: Tensor) -> Tensor:
        """Images x (B, 3, 32, 32) -> what the last layer sees (B, 100), non-negative."""
        x = self.layer2(self.layer1(F.relu(self.conv1(x))))
        return F.relu(self.linear1(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Images x (B, 3, 32, 32) -> logits (B, classes)."""
        out: Tensor = self.linear2(self.features(x))
        return out


class _Block(nn.Module):
    """relu(f(x) + shortcut(x)); the shortcut is a 1x1 convolution where the stride is 2, else x itself."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Sequential(*([nn.Conv2d(inputs, outputs, 1, stride)] if stride != 1 else []))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))
