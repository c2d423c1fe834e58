"""Classifiers of images in [0, 1] that carry their own normalisation, and the pretrained ones by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from gentk.errors import RecipeError, did_you_mean
from gentk.nets.cifar_resnet import CifarResNet
from gentk.nets.published import Published, fill
from gentk.nets.small_classifiers import ReluMlp, SmallResNet, TwoConv


class Backbone(Protocol):
    """A network of normalised images: logits, and the features that its last linear layer turns into them."""

    def features(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> (B, F)."""

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (B, classes)."""


class ImageClassifier(nn.Module):
    """`net(x)`: images (B, C, H, W) in [0, 1] -> logits (B, classes), by `backbone((x - mean) / std)` per channel.

    What an attack needs: its budget is in units of [0, 1], and gradients flow through the normalisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        # Constants of the data, not weights: they stay out of the state dict.
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        """Images x (B, C, H, W) in [0, 1] -> features (B, F)."""
        return self.backbone.features((x - self.mean) / self.std)

    def forward(self, x: Tensor) -> Tensor:
        """Images x (B, C, H, W) in [0, 1] -> logits (B, classes)."""
        return self.backbone((x - self.mean) / self.std)


@dataclass(frozen=True)
class Pretrained:
    """A published classifier: its network, what it takes, and where its weights come from."""

    build: Callable[[], Backbone]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Published


def pretrained(name: str, given: Path | None = None, *, where: torch.device | str = "cpu") -> ImageClassifier:
    """The classifier `name` of `PRETRAINED` in eval mode, its weights frozen, read as `published.fill` does.

    Raises RecipeError for an unknown name, MissingAsset and RunFailed as `published.fill`.
    """
    if name not in PRETRAINED:
        raise RecipeError(
            f"unknown classifier `{name}`{did_you_mean(name, PRETRAINED)}",
            hint=f"classifiers: {', '.join(PRETRAINED)}",
        )
    entry = PRETRAINED[name]
    net = ImageClassifier(entry.build(), mean=entry.mean, std=entry.std)
    assert isinstance(net.backbone, nn.Module)
    fill(net.backbone, entry.weights, given)
    return net.eval().requires_grad_(False).to(where)


_CIFAR, _MNIST = (3, 32, 32), (1, 28, 28)
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_AS_IS = {"mean": (0.0,), "std": (1.0,)}
_RESNET = "akamaster/pytorch_resnet_cifar10@d5489e8995e81e91ce6b1d69dcc98ad579b0b153: pretrained_models/"
_CROWN = "Verified-Intelligence/alpha-beta-CROWN@8250d5fbd530c76e5e3243db28b3cad5fbaef740: complete_verifier/models/"
_CONVEX = "locuslab/convex_adversarial@2cd8149249b9e90383af10fc7e9b9fe90166813e: models/"


def _weights(name: str, size: int, sha256: str, source: str, licence: str) -> Published:
    return Published(name, "classifiers", size, sha256, source, licence)


PRETRAINED: dict[str, Pretrained] = {
    "cifar10_resnet20": Pretrained(
        lambda: CifarResNet(20),
        _CIFAR,
        **_IMAGENET,
        weights=_weights(
            "cifar10_resnet20",
            1092776,
            "7fbe33f45c18b35c4cf5a6b20a3361df3f4ceb7e9b6e6d497a224f81157e4d55",
            f"{_RESNET}resnet20-12fca82f.th",
            "BSD-2-Clause",
        ),
    ),
    "cifar10_resnet32": Pretrained(
        lambda: CifarResNet(32),
        _CIFAR,
        **_IMAGENET,
        weights=_weights(
            "cifar10_resnet32",
            1879224,
            "e2a9f6ed53b1e5088b6a14db971db37f3f39d9ebbb312ce426a8dbbf22006c9f",
            f"{_RESNET}resnet32-d509ac18.th",
            "BSD-2-Clause",
        ),
    ),
    "cifar10_resnet4b_adv": Pretrained(
        SmallResNet,
        _CIFAR,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        weights=_weights(
            "cifar10_resnet4b_adv",
            497400,
            "06d6d4b0ffb1668fd488ca849cec68ea669a9eb8e40781cccc1ccc363c873774",
            f"{_CROWN}cifar10_resnet/resnet4b.pth",
            "BSD-3-Clause",
        ),
    ),
    "cifar10_cnn_wide_robust": Pretrained(
        lambda: TwoConv(channels=3, size=32),
        _CIFAR,
        mean=(0.485, 0.456, 0.406),
        std=(0.225, 0.225, 0.225),
        weights=_weights(
            "cifar10_cnn_wide_robust",
            860488,
            "bce1b6a8e442ccad3ce736cdfd6d8f29bf7a7a1faf32105de20d5311fbe6c94f",
            f"{_CROWN}oval/cifar_wide.pth",
            "BSD-3-Clause",
        ),
    ),
    "mnist_cnn_a_adv": Pretrained(
        lambda: TwoConv(channels=1, size=28),
        _MNIST,
        **_AS_IS,
        weights=_weights(
            "mnist_cnn_a_adv",
            666408,
            "4ffa2016de9446bf1c0b76d27ca483ab31fa18104ee3148e1d1f8437fe4d61b0",
            f"{_CROWN}sdp/mnist_cnn_a_adv.model",
            "BSD-3-Clause",
        ),
    ),
    "mnist_cnn_kw01": Pretrained(
        lambda: TwoConv(channels=1, size=28),
        _MNIST,
        **_AS_IS,
        weights=_weights(
            "mnist_cnn_kw01",
            666352,
            "29be951e33de10fae7f28f1cfa147961eff667130bbdb0a1fa4e38c101720b14",
            f"{_CONVEX}mnist.pth",
            "MIT",
        ),
    ),
    "fashion_mnist_cnn_kw01": Pretrained(
        lambda: TwoConv(channels=1, size=28),
        _MNIST,
        **_AS_IS,
        weights=_weights(
            "fashion_mnist_cnn_kw01",
            666360,
            "6fa0abb0e4d6ea3b632ff66a4a9699fda26259c8daf18ffeb98668af337fe387",
            f"{_CONVEX}fashion_mnist.pth",
            "MIT",
        ),
    ),
    "fashion_mnist_mlp": Pretrained(
        lambda: ReluMlp((784, 512, 256, 256, 128, 10)),
        _MNIST,
        mean=(0.2861,),
        std=(0.3530,),
        weights=_weights(
            "fashion_mnist_mlp",
            2533848,
            "2e30ca340a502d498e72f880920ef2060ddfd3245c1bb54ac6681f5fc782a813",
            "phlippe/saved_models@e38faed1ab83a593d2c90098ea563d32287fc80f: tutorial4/FashionMNIST_Adam.tar",
            "MIT",
        ),
    ),
}
