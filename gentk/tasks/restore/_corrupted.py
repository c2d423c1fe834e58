"""Data of which only measurements exist: image k has one y for ever, with its own mask and its own noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gentk import data, operators
from gentk.data import DataSet, Split
from gentk.engine import rng
from gentk.engine.method import Export
from gentk.operators import Operator
from gentk.operators.identity import Identity
from gentk.operators.masks import Masked
from gentk.processes.denoiser import Denoiser

_FOR_MOMENTS = 4096  # measurements that mean and variance are taken from
_FLOOR = 0.1  # least deviation of a direction in the warm-up's prior: data in [-1, 1] hold whole rows of one value
_LARGEST = 1024  # numbers of an image up to which its covariance is estimated


class Corrupted:
    """A split as the loop sees it: `batch(index)` -> measurements float32 (n, *measured), and `index` for labels.

    The clean images are read to be measured, and kept for figures only.
    """

    def __init__(self, recipe: Any, split: Split, where: torch.device) -> None:
        self.clean: DataSet = data.load(recipe.data, split)
        self.recipe, self.split, self.where = recipe, split, where

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one clean sample."""
        return self.clean.shape

    def __len__(self) -> int:
        """The number of measurements."""
        return len(self.clean)

    def operator(self, index: Tensor) -> Operator:
        """The operator of these images, as it was when they were measured."""
        keys = index.tolist() if operators.drawn(self.recipe.operator) else []
        gens = [rng.generator(self.recipe.seed, "operator", self.split, k) for k in keys]
        return operators.build(self.recipe.operator, self.shape, gens, where=str(self.where))

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The measurements of these images, the same at every call; and their index."""
        x, _ = self.clean.batch(index)
        op = self.operator(index)
        purpose = f"measurement of {self.split}"
        eps = [rng.noise(self.recipe.seed, k, 1, op.measured, purpose=purpose) for k in index.tolist()]
        return operators.measure(op, x.to(self.where), self.recipe.sigma, torch.cat(eps).to(self.where)), index

    def first(self, n: int) -> tuple[Tensor, Operator, Tensor]:
        """The first n measurements, their operator, and the clean images."""
        index = torch.arange(min(n, len(self)))
        return self.batch(index)[0], self.operator(index), self.clean.batch(index)[0].to(self.where)


class Moments:
    """Mean, variance (shape) and covariance of the images, from measurements: the warm-up's prior and the first guess.

    Mean and variance per pixel where y has the image's shape, over the images that show it; else one number for all
    pixels. The noise's variance is taken off; a pixel that nobody shows has the mean of the others.

    Where the operator leaves pixels apart (a mask or nothing), the covariance of two is that over the images that show
    both, 0 where none does; eigenvalues below the floor are put on it. It is kept as `root`, C = root root^T, and
    `whiten`, C^-1 = whiten whiten^T, (D, D) each; None for other operators and for images of more than 1,024 numbers.
    """

    def __init__(self, held: Corrupted, sigma: float) -> None:
        y, op, _ = held.first(_FOR_MOMENTS)
        if op.measured == op.shape:
            kept = op.seen(torch.ones_like(y))
            n = kept.sum(0)
            mean = (y * kept).sum(0) / n.clamp_min(1)
            variance = ((y - mean).square() * kept).sum(0) / n.clamp_min(1) - sigma**2
            shown = n > 1
            self.mean = torch.where(shown, mean, mean[shown].mean())
            self.variance = torch.where(shown, variance, variance[shown].mean()).clamp_min(_FLOOR**2)
        else:
            view = operators.shown(op, y)
            self.mean = torch.full(op.shape, float(view.mean()), device=view.device)
            self.variance = torch.full_like(self.mean, max(float(view.var()) - sigma**2, _FLOOR**2))
        self.sigma, self.r = sigma, float(self.variance.mean().sqrt())
        apart = isinstance(op, Identity | Masked)
        self.deviation: float | Tensor = self.variance.sqrt() if apart else self.r
        self.root: Tensor | None = None
        self.whiten: Tensor | None = None
        if apart and self.mean.numel() <= _LARGEST:
            self._covariance((y - self.mean) * kept, kept)

    def _covariance(self, centred: Tensor, kept: Tensor) -> None:
        seen, y = kept.flatten(1).double(), centred.flatten(1).double()
        together = seen.T @ seen
        found = torch.where(together > 1, y.T @ y / together.clamp_min(1), 0.0)
        found.diagonal().copy_(self.variance.flatten())
        values, vectors = torch.linalg.eigh(found)
        deviations = values.clamp_min(_FLOOR**2).sqrt()
        self.root, self.whiten = (vectors * deviations).to(centred), (vectors / deviations).to(centred)


def prior_export(recipe: Any, prior: Denoiser, shape: tuple[int, ...]) -> Export:
    """A learned prior as a file that every command takes for a model."""
    header = {
        "kind": "denoiser",
        "net": recipe.net.model_dump(mode="json"),
        "process": {"name": prior.process.name},
        "predicts": "edm",
        "sigma_data": prior.sigma_data,
        "data": data_header(recipe, shape),
        "licence": "Apache-2.0",
    }
    return Export(prior.net, header)


def data_header(recipe: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """What a file of ours says of the data that were measured."""
    section = recipe.data.model_dump(mode="json")
    return {"name": recipe.data.name, "shape": shape, "classes": 0, "section": section}
