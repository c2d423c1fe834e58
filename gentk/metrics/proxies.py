"""Feature extractors for proxy Frechet distances: small classifiers of the data set itself, each a file of weights.

They run offline and tell small differences apart, but their distances are in other units than the FID and are named
after the network: `fd_resnet20`, `fd_mnist_cnn`, `fd_fashion_mlp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gentk.errors import RecipeError, did_you_mean
from gentk.nets.image_classifier import PRETRAINED, ImageClassifier, pretrained
from gentk.processes.models import fast_layout

_CLASSIFIERS = {"resnet20": "cifar10_resnet20", "mnist-cnn": "mnist_cnn_a_adv", "fashion-mlp": "fashion_mnist_mlp"}
_COLOURS = {1: "grey", 3: "RGB"}


def names() -> tuple[str, ...]:
    """Every name that `load` knows."""
    return tuple(_CLASSIFIERS)


@dataclass(frozen=True, eq=False)
class Proxy:
    """`proxy(images)`: uint8 (N, *shape) -> (N, features) float64 on the CPU, what the last linear layer sees.

    `figure` is the name of the Frechet distance of these features, `facts` what a result says about them.
    """

    name: str
    figure: str
    shape: tuple[int, int, int]
    facts: Mapping[str, str]
    net: ImageClassifier
    batch: int = 100  # that the activations fit the CPU's cache: larger ones take up to a third more time

    @torch.no_grad()  # a measurement
    def __call__(self, images: Tensor) -> Tensor:
        """Features of `images`. Raises RecipeError for images of another size, colour or type."""
        check(self.name, images, self.shape)
        where = self.net.mean.device
        parts = (part.to(where).float() / 255 for part in torch.split(images, self.batch))
        # TF32, cuDNN's default, keeps 10 bits of the mantissa.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.cat([self.net.features(part).cpu().double() for part in parts])


def load(name: str, *, weights: Path | None = None, where: torch.device | str = "cpu") -> Proxy:
    """The proxy `name`, its network from the file `weights`, else from $GENTK_DATA/classifiers, in eval mode.

    Raises RecipeError for an unknown name, MissingAsset without the file and RunFailed if it holds other weights.
    """
    if name not in _CLASSIFIERS:
        raise RecipeError(
            f"unknown proxy `{name}`{did_you_mean(name, _CLASSIFIERS)}", hint=f"proxies: {', '.join(_CLASSIFIERS)}"
        )
    entry = PRETRAINED[_CLASSIFIERS[name]]
    net = pretrained(entry.weights.name, weights, where=where)
    fast_layout(net)
    facts = {
        "extractor": f"{entry.weights.name}, what its last linear layer sees",
        "weights": entry.weights.file,
        "weights_sha256": entry.weights.sha256,
        "resize": f"none, {_words(entry.shape)}",
        "range": f"(v / 255 - {entry.mean}) / {entry.std}",
    }
    return Proxy(name, f"fd_{name.replace('-', '_')}", entry.shape, facts, net)


def check(name: str, images: Tensor, shape: tuple[int, int, int]) -> None:
    """Raises RecipeError unless `images` are uint8 (N, *shape); `name` is what takes them."""
    if images.dtype != torch.uint8:
        raise RecipeError(
            f"{name}: takes images as bytes 0..255, these are {str(images.dtype).removeprefix('torch.')}",
            hint="save them as PNG or as a uint8 array",
        )
    if tuple(images.shape[1:]) != shape:
        raise RecipeError(
            f"{name}: takes {_words(shape)}, these are {_words(tuple(images.shape[1:]))}",
            hint="nothing is resized or recoloured here: choose the metric for these images",
        )


def _words(shape: tuple[int, ...]) -> str:
    if len(shape) != 3:
        return f"arrays of shape {shape}"
    channels, height, width = shape
    return f"{_COLOURS.get(channels, f'{channels}-channel')} images of {width} x {height} pixels"
