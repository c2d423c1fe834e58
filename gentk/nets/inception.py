"""The InceptionV3 of the Frechet Inception Distance, frozen, from its published state dict.

The network of Szegedy et al. 2015 (arXiv:1512.00567, section 6) as TensorFlow's graph of 2015-12-05 has it, which the
FID (arXiv:1706.08500) and the Inception score (arXiv:1606.03498) are defined by. It differs from torchvision's: 1008
classes, averages that leave out the padding, a maximum instead of an average in the last block, batch norm with
epsilon 1e-3. Parameter names are those of `pt_inception-2015-12-05-6726825d.pth` (github.com/mseitzer/pytorch-fid).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.errors import GentkError

SIDE = 299  # pixels of the input
FEATURES = 2048
CLASSES = 1008

_EPSILON = 1e-3


class Conv(NamedTuple):
    """A convolution by name: `out` channels, kernel (height, width); stride 2 goes without padding."""

    name: str
    out: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


Pool = str  # "avg" and "max" keep the side, "halve" takes maxima with stride 2
Fork = tuple[Conv, Conv]  # two convolutions of one input, side by side
Chain = tuple[Conv | Pool | Fork, ...]

_FLAT, _TALL, _SMALL = (1, 7), (7, 1), (3, 3)

_STEM: Chain = (
    Conv("Conv2d_1a_3x3", 32, _SMALL, 2),
    Conv("Conv2d_2a_3x3", 32, _SMALL, padded=False),
    Conv("Conv2d_2b_3x3", 64, _SMALL),
    "halve",
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, _SMALL, padded=False),
    "halve",
)


def _a(pooled: int) -> tuple[Chain, ...]:
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, _SMALL), Conv("branch3x3dbl_3", 96, _SMALL)),
        ("avg", Conv("branch_pool", pooled)),
    )


def _c(width: int) -> tuple[Chain, ...]:
    double = [Conv(f"branch7x7dbl_{i}", width, _FLAT if i % 2 else _TALL) for i in (2, 3, 4)]
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", width), Conv("branch7x7_2", width, _FLAT), Conv("branch7x7_3", 192, _TALL)),
        (Conv("branch7x7dbl_1", width), *double, Conv("branch7x7dbl_5", 192, _FLAT)),
        ("avg", Conv("branch_pool", 192)),
    )


def _e(pool: Pool) -> tuple[Chain, ...]:
    def fork(name: str) -> Fork:
        return Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))

    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), fork("branch3x3_2")),
        (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, _SMALL), fork("branch3x3dbl_3")),
        (pool, Conv("branch_pool", 192)),
    )


_B: tuple[Chain, ...] = (
    (Conv("branch3x3", 384, _SMALL, 2),),
    (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, _SMALL), Conv("branch3x3dbl_3", 96, _SMALL, 2)),
    ("halve",),
)
_D: tuple[Chain, ...] = (
    (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, _SMALL, 2)),
    (
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, _FLAT),
        Conv("branch7x7x3_3", 192, _TALL),
        Conv("branch7x7x3_4", 192, _SMALL, 2),
    ),
    ("halve",),
)
_MIXED: dict[str, tuple[Chain, ...]] = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _B,
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _D,
    "Mixed_7b": _e("avg"),
    "Mixed_7c": _e("max"),  # in the published graph, and in no description of the architecture
}


class Unit(nn.Module):
    """Convolution, batch norm with the statistics of training, ReLU: (B, Cin, H, W) -> (B, Cout, H', W')."""

    def __init__(self, cin: int, spec: Conv) -> None:
        super().__init__()
        padding = (spec.kernel[0] // 2, spec.kernel[1] // 2) if spec.padded and spec.stride == 1 else 0
        self.conv = nn.Conv2d(cin, spec.out, spec.kernel, spec.stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(spec.out, eps=_EPSILON)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")  # untrained: neither dies nor explodes

    def forward(self, x: Tensor) -> Tensor:
        """Features x (B, Cin, H, W) -> non-negative features (B, Cout, H', W')."""
        return F.relu_(self.bn(self.conv(x)))

    def fold(self) -> None:
        """Puts the batch norm into the convolution: the same function, but for rounding."""
        bn = self.bn
        assert isinstance(bn, nn.BatchNorm2d)
        assert bn.running_mean is not None
        assert bn.running_var is not None
        # In float64: the scales of the published network reach from 1e-3 to 1e3.
        scale = bn.weight.double() * (bn.running_var.double() + bn.eps).rsqrt()
        shift = bn.bias.double() - bn.running_mean.double() * scale
        weight = self.conv.weight.double() * scale[:, None, None, None]
        self.conv.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.conv.bias = nn.Parameter(shift.float(), requires_grad=False)
        self.bn = nn.Identity()


class Mixed(nn.Module):
    """Chains side by side, joined along the channels: (B, Cin, H, W) -> (B, Cout, H', W')."""

    def __init__(self, cin: int, chains: tuple[Chain, ...]) -> None:
        super().__init__()
        self.chains = chains
        self.width = sum(_add(self, cin, chain) for chain in chains)

    def forward(self, x: Tensor) -> Tensor:
        """Features x (B, Cin, H, W) -> (B, Cout, H', W')."""
        return torch.cat([_run(self, chain, x) for chain in self.chains], 1)


class Inception(nn.Module):
    """`net(x)`: images (B, 3, 299, 299), (v - 128) / 128 of bytes v -> pool features (B, 2048), non-negative.

    Always in eval mode: with batch norm in training mode features would depend on the rest of the batch.
    """

    def __init__(self) -> None:
        super().__init__()
        width = _add(self, 3, _STEM)
        for name, chains in _MIXED.items():
            block = Mixed(width, chains)
            self.add_module(name, block)
            width = block.width
        self.fc = nn.Linear(FEATURES, CLASSES)
        self.eval()

    def train(self, mode: bool = True) -> Inception:
        """Stays in eval mode whatever `mode` says."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Images x (B, 3, 299, 299) -> features (B, 2048)."""
        x = _run(self, _STEM, x)
        for name in _MIXED:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))

    def logits(self, features: Tensor, *, bias: bool = False) -> Tensor:
        """Features (B, 2048) -> logits (B, 1008); the Inception score takes them without the bias."""
        return F.linear(features, self.fc.weight, self.fc.bias if bias else None)

    def fused(self) -> Inception:
        """A copy for inference, the same function but for rounding; its state dict is no longer the published one."""
        net = copy.deepcopy(self)
        for unit in net.modules():
            if isinstance(unit, Unit):
                unit.fold()
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def load(path: Path) -> Inception:
    """The frozen network with the weights of `path`, a file in the format of the published one.

    Raises GentkError if the file cannot be read, holds anything but tensors, or another network's tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch.load has no closed list of them
        raise GentkError(
            f"{path}: cannot be read as a state dict: {' '.join(str(e).split())[:200]}",
            hint="needed is pt_inception-2015-12-05-6726825d.pth, not its TorchScript or pickle twins, which run code",
        ) from e
    with torch.device("meta"):
        net = Inception()
    expected = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    entries = state.items() if isinstance(state, dict) else ()
    found = {name: tuple(value.shape) if isinstance(value, Tensor) else "no tensor" for name, value in entries}
    if found != expected:
        wrong = sorted((k for k in expected.keys() | found if expected.get(k) != found.get(k)), key=str)
        shown = "; ".join(
            f"{name}: {found.get(name, 'absent')}, not {expected.get(name, 'here')}" for name in wrong[:3]
        )
        raise GentkError(
            f"{path}: {len(wrong)} tensors are not those of the FID's InceptionV3 ({len(expected)} tensors): {shown}",
            hint="needed is pt_inception-2015-12-05-6726825d.pth; torchvision's and timm's InceptionV3 are others",
        )
    if broken := next((name for name, value in state.items() if not value.isfinite().all()), None):
        raise GentkError(f"{path}: NaN or infinity in {broken}", hint="the file is damaged: fetch it again")
    net.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in state.items()}, assign=True)
    return net.requires_grad_(False)


def _add(module: nn.Module, cin: int, chain: Chain) -> int:
    """Adds the units of a chain to `module`; returns the channels that come out."""
    for step in chain:
        if isinstance(step, Conv):
            module.add_module(step.name, Unit(cin, step))
            cin = step.out
        elif isinstance(step, tuple):
            for conv in step:
                module.add_module(conv.name, Unit(cin, conv))
            cin = sum(conv.out for conv in step)
    return cin


def _run(module: nn.Module, chain: Chain, x: Tensor) -> Tensor:
    """The chain's units and pools, one after another."""
    for step in chain:
        if isinstance(step, Conv):
            x = module.get_submodule(step.name)(x)
        elif isinstance(step, tuple):
            x = torch.cat([module.get_submodule(conv.name)(x) for conv in step], 1)
        elif step == "avg":
            x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        else:
            x = F.max_pool2d(x, 3, 1, 1) if step == "max" else F.max_pool2d(x, 3, 2)
    return x
