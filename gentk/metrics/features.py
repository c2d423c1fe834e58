"""Feature extractors: functions from samples to float64 vectors, in which distributions are compared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.nets.classifier import SmallCnn
from gentk.processes.models import load

Extractor = Callable[[Tensor], Tensor]


def extractor(ref: str, *, shape: tuple[int, ...], where: torch.device, batch: int = 1000) -> Extractor:
    """(N, *shape) float32 (images in [-1, 1]) -> (N, F) float64 on the CPU.

    `ref` is `identity` (the flattened values) or a classifier, by name, run or file, whose feature layer is used.
    Raises RecipeError when the classifier takes samples of another shape.
    """
    if ref == "identity":
        return lambda x: x.flatten(1).double()
    model = load(ref, kinds=("classifier",), where=where)
    if model.shape != shape:
        raise RecipeError(
            f"measure.features: `{ref}` takes samples of shape {model.shape}, these have {shape}",
            hint="train one: gentk train classifier --data NAME; or --set measure.features=identity",
        )

    net = model.net
    assert isinstance(net, SmallCnn)  # the only classifier there is

    @torch.no_grad()  # a measurement
    def extract(x: Tensor) -> Tensor:
        return torch.cat([net.features(part.to(where)).cpu().double() for part in torch.split(x, batch)])

    return extract
