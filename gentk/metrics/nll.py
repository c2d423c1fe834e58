"""Bits per dimension of MNIST images under a published flow: a judge that no generator here was trained against.

Likelihood and looks are different things (Theis et al. 2016, arXiv:1511.01844), and a flow sees strokes and noise more
than digits. Under `flow-simple` digits have 1.09 bits on average, upside down 0.03 more, with noise of 8 grey levels
5.5 more, articles of Fashion-MNIST 4 more, an all-black image 0.03 in all. So a mean far above that of the test set
is a fault for certain, often noise that the eye does not see; one below it is no merit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gentk.errors import RecipeError, did_you_mean
from gentk.metrics.proxies import check
from gentk.nets.coupling_flow import CouplingFlow
from gentk.nets.published import Published, fill
from gentk.processes.models import fast_layout

_SOURCE = "phlippe/saved_models@e38faed1ab83a593d2c90098ea563d32287fc80f: tutorial11/"
_WEIGHTS = {
    "flow-vardeq": Published(
        "mnist_flow_vardeq",
        "generative",
        2579688,
        "29d5408679cbdfe67b1cafc20d64b2ba843501a0833430142c26ba1496ad85fe",
        f"{_SOURCE}MNISTFlow_vardeq.ckpt",
        "MIT",
    ),
    "flow-simple": Published(
        "mnist_flow_simple",
        "generative",
        2268936,
        "db16472a480ec8da6a6c2d3cb4478028d0538adfc3d64d3581ba6346cbbb9557",
        f"{_SOURCE}MNISTFlow_simple.ckpt",
        "MIT",
    ),
}
_NOISE_WIDTH = {"flow-vardeq": 16, "flow-simple": None}


def names() -> tuple[str, ...]:
    """Every name that `load` knows, the default first."""
    return tuple(_WEIGHTS)


@dataclass(frozen=True, eq=False)
class Judge:
    """`judge(images, gen)`: uint8 (N, *shape) -> bits per dimension (N,), float64 on the CPU: lower is likelier.

    `facts` is what a result says about it.
    """

    name: str
    shape: tuple[int, int, int]
    facts: Mapping[str, str]
    flow: CouplingFlow
    batch: int = 50  # that the activations fit the CPU's cache

    @torch.no_grad()  # a measurement
    def __call__(self, images: Tensor, gen: torch.Generator) -> Tensor:
        """Upper bounds of -log2 p(image) / dimensions, with one draw of the dequantisation noise from `gen` (CPU).

        Their mean over images is what is reported. However the images are cut into calls, the figures are the same.
        Raises RecipeError for images of another size, colour or type.
        """
        check(self.name, images, self.shape)
        where = next(self.flow.parameters()).device
        bits = -math.prod(self.shape) * math.log(2)

        def measure(part: Tensor) -> Tensor:
            u = torch.rand(part.shape, generator=gen).double()
            out: Tensor = self.flow(part.to(where), u.to(where))
            return out.cpu() / bits

        # TF32, cuDNN's default, keeps 10 bits of the mantissa.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.cat([measure(part) for part in torch.split(images, self.batch)])


def load(name: str = "flow-vardeq", *, weights: Path | None = None, where: torch.device | str = "cpu") -> Judge:
    """The judge `name`, its flow from the file `weights`, else from $GENTK_DATA/generative.

    `flow-vardeq` learned its dequantisation noise, `flow-simple` takes it uniform. Raises RecipeError for an unknown
    name, MissingAsset without the file and RunFailed if it holds other weights.
    """
    if name not in _WEIGHTS:
        raise RecipeError(
            f"unknown judge `{name}`{did_you_mean(name, _WEIGHTS)}", hint=f"judges: {', '.join(_WEIGHTS)}"
        )
    published = _WEIGHTS[name]
    flow = CouplingFlow(noise_width=_NOISE_WIDTH[name])
    fill(flow, published, weights)
    flow.eval().requires_grad_(False).to(where)
    fast_layout(flow)
    facts = {
        "judge": f"{published.name}, trained on MNIST",
        "weights": published.file,
        "weights_sha256": published.sha256,
        "resize": "none, bytes as they are",
        "formula": "upper bound of -log2 p / dimensions, one draw of the dequantisation noise an image",
    }
    return Judge(name, (1, 28, 28), facts, flow)
