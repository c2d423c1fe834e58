"""Distances between a picture and the one that it should be: PSNR, SSIM, LPIPS.

All give one figure for each pair, to be averaged: for PSNR the mean over pictures is not that of the pooled error, and
restoration papers mean the former.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentk.errors import GentkError, RunFailed
from gentk.metrics import registry, states
from gentk.recipe.weights import Weights

Net = Literal["alex", "vgg"]
_WINDOW = 11  # of SSIM


def psnr(x: Tensor, y: Tensor, *, data_range: float) -> Tensor:
    """10 log10(data_range^2 / mean squared error), in dB: (N, C, H, W) twice -> (N,) float64; infinite if equal.

    `data_range` is the width of the pictures' range: 255 for uint8, 2 for [-1, 1]. Raises RunFailed for shapes that
    differ, NaN, and values that no such range holds.
    """
    x, y = _checked(x, y, data_range)
    return 10 * torch.log10(data_range**2 / (x - y).square().flatten(1).mean(1))


def ssim(x: Tensor, y: Tensor, *, data_range: float) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13): (N, C, H, W) twice -> (N,) float64, at most 1.

    As published: Gaussian window 11 x 11 of deviation 1.5, k = 0.01 and 0.03, mean over channels and over the
    positions that the window fits in. torchmetrics counts the borders, too, on which it mirrors the picture. Raises
    RunFailed as `psnr` does and for sides under 11.
    """
    x, y = _checked(x, y, data_range)
    if min(x.shape[2:]) < _WINDOW:
        raise RunFailed(f"SSIM's window of 11 x 11 does not fit into {tuple(x.shape[2:])} pixels")
    t = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    w = torch.exp(-t.square() / (2 * 1.5**2))
    window = (torch.outer(w, w) / w.sum().square())[None, None]
    a, b, aa, bb, ab = F.conv2d(torch.stack([x, y, x * x, y * y, x * y]).reshape(-1, 1, *x.shape[2:]), window).chunk(5)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    means = (2 * a * b + c1) / (a * a + b * b + c1)
    structure = (2 * (ab - a * b) + c2) / (aa - a * a + bb - b * b + c2)
    return (means * structure).reshape(len(x), -1).mean(1)


def _checked(x: Tensor, y: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape or x.ndim != 4:
        raise RunFailed(f"pictures of shape {tuple(x.shape)} and {tuple(y.shape)}, expected one (N, C, H, W)")
    x, y = x.double(), y.double()
    for each in (x, y):
        low, high = each.detach().aminmax()
        # The bicubic overshoot of a float picture must be clipped by who made it, not averaged over in silence.
        if not high - low <= data_range * (1 + 1e-6):
            raise RunFailed(
                f"values from {low.item():.3g} to {high.item():.3g} with data_range {data_range:g}",
                hint="255 for uint8, 1 for [0, 1], 2 for [-1, 1]; pictures are to be clipped to their range",
            )
    return x, y


# After which ReLUs each trunk's features are taken, and how wide they are.
_TRUNKS: dict[Net, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "alex": ((1, 4, 7, 9, 11), (64, 192, 384, 256, 256)),
    "vgg": ((3, 8, 15, 22, 29), (64, 128, 256, 512, 512)),
}
_TRUNK_FILES: dict[Net, Weights] = {"alex": registry.LPIPS_ALEXNET, "vgg": registry.LPIPS_VGG16}
_HEAD_FILES: dict[Net, Weights] = {
    "alex": Weights(
        name="lpips_v0.1_alex.pth",
        url="https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth",
        size=6_009,
        sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        licence="BSD-2-Clause",
        note="linear heads of LPIPS v0.1 (alex)",
    ),
    "vgg": Weights(
        name="lpips_v0.1_vgg.pth",
        url="https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
        size=7_289,
        sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        licence="BSD-2-Clause",
        note="linear heads of LPIPS v0.1 (vgg)",
    ),
}


class Lpips(nn.Module):
    """LPIPS v0.1 (Zhang et al. 2018, arXiv:1801.03924): `distance(x, y)`, pictures in [-1, 1] -> (N,), with gradient.

    `alex` is what papers report, `vgg` what they train with.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.taps, widths = _TRUNKS[net]
        self.features = _alexnet() if net == "alex" else _vgg16()
        self.heads = nn.ParameterList(torch.zeros(width) for width in widths)
        # ImageNet's mean and deviation, for pictures in [-1, 1], to the digits of the published code.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x and y (N, 3, H, W) in [-1, 1] -> (N,) float32. Raises RunFailed for other shapes and ranges."""
        for each in (x, y):
            if each.shape != x.shape or each.ndim != 4 or each.shape[1] != 3 or not each.is_floating_point():
                raise RunFailed(f"LPIPS takes float (N, 3, H, W) twice, not {each.dtype} {tuple(each.shape)}")
            low, high = each.detach().aminmax()
            if not (low >= -1 - 1e-5 and high <= 1 + 1e-5):
                raise RunFailed(
                    f"LPIPS takes [-1, 1], these pictures reach from {low.item():.3g} to {high.item():.3g}",
                    hint="clip them; from uint8: x / 127.5 - 1",
                )
        total = x.new_zeros(len(x))
        for head, a, b in zip(self.heads, self._maps(x), self._maps(y), strict=True):
            total = total + torch.einsum("nchw,c->nhw", (a - b).square(), head).mean((1, 2))
        return total

    def _maps(self, x: Tensor) -> list[Tensor]:
        """Features at the taps, of length 1 at each position."""
        maps, x = [], (x - self.shift) / self.scale
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                # vector_norm has a gradient where nothing is active, which a square root has not
                maps.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10))
        return maps


def lpips(
    net: Net = "alex",
    *,
    trunk: Path | None = None,
    heads: Path | None = None,
    where: torch.device,
    offline: bool = False,
) -> Lpips:
    """LPIPS with torchvision's `trunk` and the published `heads`, of files given or to be found.

    The heads are also taken from an installed torchmetrics. Raises MissingAsset for what is absent, GentkError for
    weights of another network.
    """
    distance = Lpips(net)
    path = states.locate(_TRUNK_FILES[net], trunk, offline)
    state = states.read(path)
    features = {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
    states.fill(distance.features, features, path)
    path = states.locate(_HEAD_FILES[net], heads or _shipped(net), offline)
    state = states.read(path)
    for i, head in enumerate(distance.heads):
        own = state.get(f"{net}.lin{i}.model.1.weight", state.get(f"lin{i}.model.1.weight"))
        if own is None or own.numel() != head.numel():
            raise GentkError(f"{path}: not the LPIPS heads of `{net}`: lin{i} is absent or of another width")
        head.data.copy_(own.flatten())
    return distance.to(where).eval().requires_grad_(False)


def _alexnet() -> nn.Sequential:
    """torchvision's AlexNet up to its last ReLU, layers counted as there."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


def _vgg16() -> nn.Sequential:
    """torchvision's VGG16 up to its last ReLU, layers counted as there."""
    layers: list[nn.Module] = []
    before = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers[:-1])


def _shipped(net: Net) -> Path | None:
    """The heads within an installed torchmetrics, which is not imported for it."""
    found = importlib.util.find_spec("torchmetrics")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / "functional" / "image" / "lpips_models" / f"{net}.pth"
    return path if path.is_file() else None
