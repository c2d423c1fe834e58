"""Named image protocols: everything between the bytes of an image and the features that its figure is made of.

    edm             the FID of EDM, StyleGAN and their successors, and of most papers: TensorFlow-1 resize
    clean           the FID of clean-fid (Parmar et al. 2022, arXiv:2104.11222): antialiased bicubic resize
    legacy-pytorch  the FID of pytorch-fid: half-pixel bilinear resize
    fd-dinov2       the Frechet distance on DINOv2 of Stein et al. 2023 (arXiv:2306.04675), as dgm-eval

The first three share one network. Their figures differ by more than papers do, and are never to be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gentk.errors import GentkError, RecipeError, RunFailed, did_you_mean
from gentk.metrics import registry, resizing
from gentk.nets import inception
from gentk.recipe import extras
from gentk.recipe.weights import digest, find

ImageExtractor = Callable[[Tensor], Tensor]  # uint8 (N, C, H, W), grey or RGB -> float64 (N, F) on the CPU
_Network = Callable[[Tensor], tuple[Tensor, Tensor | None]]

_FORMULA = "|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), unbiased covariances, float64"
_DINO_SIDE, _DINO_PATCH = 224, 14
_DINO_OFFSET = 0.1  # added to the number of patches a side before it becomes a scale, in the published code
_DINO_MEAN, _DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Protocol:
    """A feature space by name.

    `extract(images)`: uint8 (N, C, H, W), C = 1 (grey, repeated) or 3 -> features (N, F) and, from Inception, logits
    (N, 1008) without the bias, as the Inception score takes them; float64 on the CPU. `facts` belong beside figures.
    """

    name: str
    extract: _Network
    facts: dict[str, str]

    def features(self, images: Tensor) -> Tensor:
        """The features alone: an `ImageExtractor`."""
        return self.extract(images)[0]


@dataclass(frozen=True)
class _Rule:
    """How bytes become the network's input (N, 3, S, S) float32, in code and in words."""

    prepare: Callable[[Tensor], Tensor]
    resize: str
    range: str


_SIDE = inception.SIDE
_INCEPTION = {
    "edm": _Rule(
        lambda x: (resizing.tf1_bilinear(x, _SIDE) - 128) / 128,
        f"TensorFlow-1 bilinear to {_SIDE}, grid from the corner, no antialias",
        "(v - 128) / 128",
    ),
    "clean": _Rule(
        lambda x: (resizing.pil_bicubic(x, _SIDE) - 128) / 128,
        f"Pillow bicubic to {_SIDE}, float channels, antialias, clipped to [0, 255]",
        "(v - 128) / 128",
    ),
    "legacy-pytorch": _Rule(
        lambda x: resizing.torch_bilinear(x, _SIDE) / 127.5 - 1,
        f"torch bilinear to {_SIDE}, half-pixel centres, no antialias",
        "2 v / 255 - 1",
    ),
}
_DINO = _Rule(
    lambda x: (resizing.pil_bicubic_bytes(x, _DINO_SIDE) / 255 - _column(_DINO_MEAN)) / _column(_DINO_STD),
    f"Pillow bicubic to {_DINO_SIDE}, RGB bytes, antialias",
    "v / 255, ImageNet mean and standard deviation",
)
NAMES = (*_INCEPTION, "fd-dinov2")


def protocol(
    name: str,
    *,
    weights: Path | None = None,
    offline: bool = False,
    where: torch.device | str = "cpu",
    batch: int = 32,
) -> Protocol:
    """The protocol `name`, its network on device `where`, fed `batch` images at a time.

    `weights` is the file with the network's published weights; without it the cache is looked into, then the network
    unless `offline`. Raises RecipeError for an unknown name, MissingAsset without the weights or (fd-dinov2) timm,
    GentkError for weights of another checksum, or another network's.
    """
    if name not in NAMES:
        raise RecipeError(f"protocol `{name}` is unknown{did_you_mean(name, NAMES)}", hint=f"known: {', '.join(NAMES)}")
    device = torch.device(where)
    published = registry.DINOV2_VITL14 if name == "fd-dinov2" else registry.INCEPTION
    path = find(published, weights, offline)
    rule = _INCEPTION.get(name, _DINO)
    if name == "fd-dinov2":
        network, extractor = _dinov2(path, device), "DINOv2 ViT-L/14, normalised class token (1024)"
    else:
        network, extractor = _inception(path, device), "InceptionV3 of 2015-12-05, pool features (2048)"
    facts = {
        "extractor": extractor,
        "weights": published.name,
        "weights_sha256": digest(path),
        "resize": rule.resize,
        "range": rule.range,
        "formula": _FORMULA,
    }
    return Protocol(name, _extraction(name, rule.prepare, network, device, batch), facts)


def _inception(path: Path, where: torch.device) -> _Network:
    net = inception.load(path).fused().to(where)

    def run(x: Tensor) -> tuple[Tensor, Tensor | None]:
        features = net(x)
        return features, net.logits(features)

    return run


def _dinov2(path: Path, where: torch.device) -> _Network:
    net = dinov2(path).to(where)
    return lambda x: (net(x), None)


def _extraction(
    name: str,
    prepare: Callable[[Tensor], Tensor],
    network: _Network,
    where: torch.device,
    batch: int,
) -> _Network:
    @torch.no_grad()
    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        features: list[Tensor] = []
        logits: list[Tensor] = []
        # TF32, cuDNN's default, keeps 10 bits of the mantissa: features would be off by 1e-3.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for part in torch.split(_rgb(images, name), batch):
                x = prepare(part.to(where)).to(where, memory_format=torch.channels_last)
                f, g = network(x)
                features.append(f.cpu().double())
                if g is not None:
                    logits.append(g.cpu().double())
        return torch.cat(features), torch.cat(logits) if logits else None

    return extract


def _rgb(images: Tensor, name: str) -> Tensor:
    """Three channels of bytes. Raises RunFailed for anything but bytes: no range is guessed."""
    if images.dtype != torch.uint8:
        raise RunFailed(
            f"protocol `{name}` takes images as bytes (uint8), these are {str(images.dtype).removeprefix('torch.')}",
            hint="gentk.data.to_uint8 makes bytes of images in [-1, 1], by EDM's rule; those in [0, 1] need 2 x - 1",
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise RunFailed(f"images have shape {tuple(images.shape)}, expected (N, 1, H, W) or (N, 3, H, W)")
    return images.expand(-1, 3, -1, -1)


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None]


def dinov2(path: Path, architecture: str = "vit_large_patch14_dinov2", **settings: Any) -> torch.nn.Module:
    """DINOv2 for images of 224 pixels: (B, 3, 224, 224) normalised -> the class token after the last norm (B, 1024).

    timm's network with the published state dict of `path`; `settings` go to timm. The position table, of 37 x 37
    patches, is made 16 x 16 as the published code does it, which timm's own way misses by 0.5 % of the features.
    Raises MissingAsset without timm, GentkError for another network's file.
    """
    timm = extras.load("timm", "eval")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch.load has no closed list of them
        raise GentkError(f"{path}: cannot be read as a state dict: {' '.join(str(e).split())[:200]}") from e
    with torch.device("meta"):
        net = timm.create_model(architecture, img_size=_DINO_SIDE, num_classes=0, **settings)
    try:
        state.pop("mask_token", None)  # of the training
        state["pos_embed"] = position_table(state["pos_embed"], _DINO_SIDE // _DINO_PATCH)
        net.load_state_dict(state, assign=True)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise GentkError(
            f"{path}: does not hold {architecture}: {' '.join(str(e).split())[:200]}",
            hint=f"needed is {registry.DINOV2_VITL14.name}",
        ) from e
    return net.eval().requires_grad_(False)  # type: ignore[no-any-return]


def position_table(table: Tensor, side: int) -> Tensor:
    """A position table (1, 1 + M^2, D), class token first, for side^2 patches: (1, 1 + side^2, D).

    Bicubic, no antialias, by a scale of (side + 0.1) / M instead of to a size: the rule of the DINOv2 repository.
    """
    token, patches = table[:, :1], table[:, 1:]
    m = math.isqrt(patches.shape[1])
    grid = patches.reshape(1, m, m, -1).permute(0, 3, 1, 2)
    scale = (side + _DINO_OFFSET) / m
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([token, grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)
