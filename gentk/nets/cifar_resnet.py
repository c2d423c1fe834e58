"""ResNet for CIFAR with shortcuts that have no parameters (He et al. 2016, arXiv:1512.03385, section 4.2, option A).

The names of the tensors are those of akamaster/pytorch_resnet_cifar10, so that its published weights load.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gentk.errors import RecipeError


class CifarResNet(nn.Module):
    """`net(x)`: normalised images (B, 3, S, S) -> logits (B, classes); `net.features(x)` -> (B, 64), non-negative.

    `depth` 6 n + 2 counts the layers with weights: 20, 32, 44, 56 for n = 3, 5, 7, 9 blocks in each of three stages of
    16, 32 and 64 channels. Raises RecipeError for another depth.
    """

    def __init__(self, depth: int = 20, *, classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise RecipeError(f"depth: {depth} is not 6 n + 2", hint="use 20, 32, 44 or 56")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(BasicBlock(16, 16) for _ in range(blocks)))
        self.layer2 = nn.Sequential(BasicBlock(16, 32), *(BasicBlock(32, 32) for _ in range(blocks - 1)))
        self.layer3 = nn.Sequential(BasicBlock(32, 64), *(BasicBlock(64, 64) for _ in range(blocks - 1)))
        self.linear = nn.Linear(64, classes)

    def features(self, x: Tensor) -> Tensor:
        """Normalised images x (B, 3, S, S) -> the mean over all places of the last stage (B, 64), non-negative."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images x (B, 3, S, S) -> logits (B, classes)."""
        out: Tensor = self.linear(self.features(x))
        return out


class BasicBlock(nn.Module):
    """relu(f(x) + shortcut(x)) with two 3x3 convolutions in f: (B, I, S, S) -> (B, O, S, S), halved sides if O > I."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.new = outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def shortcut(self, x: Tensor) -> Tensor:
        """Every second pixel where the stride is 2, and channels of zeros, half of the new ones on either side."""
        if self.stride == 1:
            return x
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new // 2))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, I, S, S) -> (B, O, S, S), non-negative."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))
