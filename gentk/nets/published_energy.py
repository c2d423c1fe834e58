"""Energies that others trained and published, by name."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from gentk.nets.published import Published, fill

_MNIST_EBM = Published(
    "mnist_ebm",
    "generative",
    309004,
    "90304ed01426a9992bec00fbf5a4cc1624a292819f9b2c1a33ff4d54bb00e66b",
    "phlippe/saved_models@e38faed1ab83a593d2c90098ea563d32287fc80f: tutorial8",
    "MIT",
)
NAMES = ("mnist_ebm",)


class MnistEbm(nn.Sequential):
    """`net(x)`: images (B, 1, 28, 28) in [-1, 1] -> U (B,). The file's network gives minus the energy, of short chains.

    Four convolutions of stride 2, two linear layers, SiLU between (phlippe's tutorial 8). Static: it takes no t.
    """

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 5, stride=2, padding=4),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(256, 64),
            nn.SiLU(),
            nn.Linear(64, 1),
        )

    def forward(self, x: Tensor, t: Tensor | float | None = None) -> Tensor:
        """x (B, 1, 28, 28) -> U (B,). Raises ValueError for a noise level."""
        if t is not None:
            raise ValueError("a static energy has no noise level")
        for layer in self:
            x = layer(x)
        return -x[:, 0]


def load(name: str, given: Path | None = None) -> nn.Module:
    """The energy `name`, frozen, in eval mode; from the file `given` or $GENTK_DATA. Raises as `published.fill`."""
    assert name in NAMES
    net = MnistEbm()
    fill(net, _MNIST_EBM, given)
    return net.eval().requires_grad_(False)
