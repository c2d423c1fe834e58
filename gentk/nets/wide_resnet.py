"""Wide residual network for 32 x 32 images (Zagoruyko and Komodakis 2016, arXiv:1605.07146).

The names of the tensors are those of xternalz/WideResNet-pytorch and of RobustBench, so that their weights load.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gentk.errors import RecipeError


class WideResNet(nn.Module):
    """`net(x)`: normalised images (B, 3, 32, 32) -> logits (B, classes); `net.features(x)` -> (B, 64 widen).

    `depth` 6 n + 4 counts the convolutions: n blocks in each of three stages of 16, 32 and 64 times `widen` channels.
    Raises RecipeError for another depth.
    """

    def __init__(self, depth: int = 28, widen: int = 10, *, classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise RecipeError(f"depth: {depth} is not 6 n + 4", hint="use 16, 28, 34 or 70")
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _Stage(blocks, widths[0], widths[1], stride=1)
        self.block2 = _Stage(blocks, widths[1], widths[2], stride=2)
        self.block3 = _Stage(blocks, widths[2], widths[3], stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)

    def features(self, x: Tensor) -> Tensor:
        """Normalised images x (B, 3, S, S) -> the mean over the last stage's places (B, 64 widen), non-negative."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return F.relu(self.bn1(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images x (B, 3, S, S) -> logits (B, classes)."""
        out: Tensor = self.fc(self.features(x))
        return out


class _Stage(nn.Module):
    """`blocks` blocks in a row; the first changes width and side."""

    def __init__(self, blocks: int, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        rest = (_Block(outputs, outputs, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(_Block(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class _Block(nn.Module):
    """Norm and ReLU before each of two convolutions; where the width changes, the shortcut begins after the first."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        # `convShortcut` is the name in the files
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(x))
        around = x if self.convShortcut is None else self.convShortcut(inner)
        out: Tensor = around + self.conv2(F.relu(self.bn2(self.conv1(inner))))
        return out
