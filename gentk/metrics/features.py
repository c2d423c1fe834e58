"""Feature extractors: functions from samples to float64 vectors, in which distributions are compared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gentk.data import to_uint8
from gentk.errors import RecipeError
from gentk.metrics import proxies
from gentk.nets.classifier import SmallCnn
from gentk.processes.models import load

Extractor = Callable[[Tensor], Tensor]


def extractor(ref: str, *, shape: tuple[int, ...], where: torch.device, batch: int = 1000) -> Extractor:
    """(N, *shape) float32 (images in [-1, 1]) -> (N, F) float64 on the CPU.

    `ref` is `identity` (the flattened values), a classifier, by name, run or file, whose feature layer is used, or the
    name of a proxy (`metrics.proxies`), which sees the images as bytes, as `evaluate` does.
    Raises RecipeError when the classifier takes samples of another shape.
    """
    if ref == "identity":
        return lambda x: x.flatten(1).double()
    if ref in proxies.names():
        proxy = proxies.load(ref, where=where)
        _fits(ref, proxy.shape, shape)
        return lambda x: proxy(to_uint8(x))
    model = load(ref, kinds=("classifier",), where=where)
    _fits(ref, model.shape, shape)
    net = model.net
    assert isinstance(net, SmallCnn)  # the only classifier there is

    @torch.no_grad()  # a measurement
    def extract(x: Tensor) -> Tensor:
        return torch.cat([net.features(part.to(where)).cpu().double() for part in torch.split(x, batch)])

    return extract


def _fits(ref: str, takes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if takes != shape:
        raise RecipeError(
            f"measure.features: `{ref}` takes samples of shape {takes}, these have {shape}",
            hint="train one: gentk train classifier --data NAME; or --set measure.features=identity",
        )
