"""The torch side of `train classifier`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk import data, nets
from gentk.attacks import training
from gentk.attacks.ball import Ball
from gentk.attacks.pgd import Pgd, pgd, predictions
from gentk.attacks.victim import Undefended
from gentk.engine.method import Batch, Export, Metrics, Phase, Result
from gentk.errors import RecipeError
from gentk.metrics.quality import halves
from gentk.nets.classifier import SmallCnn
from gentk.processes import rows
from gentk.processes.models import fast_layout

_STEPS, _ATTACKED = 40, 1000  # the attack that the trained network is measured under, on so many test images at most


class Classifying:
    """A `Trainable`: one network, one phase, cross-entropy on lightly augmented images or on attacks on these."""

    def __init__(self, recipe: Any, where: torch.device) -> None:
        self.recipe, self.config, self.where = recipe, recipe.method, where
        self.data = data.load(recipe.data, "train")
        self.test = data.load(recipe.data, "test")
        if self.data.y is None:
            raise RecipeError(
                f"data.name: `{recipe.data.name}` has no labels to learn", hint="put images into class sub-folders"
            )
        if recipe.net.name != "small-cnn":
            raise RecipeError(f"net.name: `{recipe.net.name}` is a denoiser, a classifier needs `small-cnn`")
        torch.manual_seed(recipe.seed)  # the initial weights
        net = nets.build(recipe.net, shape=self.data.shape, classes=self.data.classes)
        self.nets: dict[str, nn.Module] = {"classifier": fast_layout(net).to(where)}
        self.ema, self.optim = ("classifier",), {"classifier": recipe.optim}

    def phases(self, step: int) -> Iterator[Phase]:
        """One update of the classifier."""
        yield Phase("classifier", ("classifier",), self._loss)

    def _loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        x, y, config = batch.x, batch.y, self.config
        assert x is not None  # the loop supplies data to a method that has some
        assert y is not None  # checked in __init__
        x = _shifted(x, config.shift, gen) + config.noise * rows.randn(x.shape, gen, device=self.where)
        if config.adversarial is not None:
            return self._attacked(x, y, gen)
        logits = self.nets["classifier"](x)
        accuracy = (logits.argmax(1) == y).float().mean()
        return F.cross_entropy(logits, y, label_smoothing=config.label_smoothing), {"accuracy": accuracy}

    def _attacked(self, x: Tensor, y: Tensor, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        config = self.config.adversarial
        inner = training.Inner(Ball(config.norm, config.eps), config.steps, config.size(), config.random_start)
        net, unit, smoothing = _Unit(self.nets["classifier"]), ((x + 1) / 2).clamp(0, 1), self.config.label_smoothing
        if config.loss == "trades":
            loss, logits = training.trades(net, unit, y, inner, gen, beta=config.beta, smoothing=smoothing)
        else:
            loss, logits = training.madry(net, unit, y, inner, gen, smoothing=smoothing)
        return loss, {"accuracy_attacked": (logits.argmax(1) == y).float().mean()}

    def _under_attack(self, net: nn.Module) -> float:
        """Accuracy under PGD of 40 steps within the training's ball: an upper bound, that other attacks may lower."""
        config, ids = self.config.adversarial, torch.arange(min(len(self.test), _ATTACKED))
        x, y = self.test.batch(ids)
        assert y is not None  # the labels are those of the training split
        x, y = ((x + 1) / 2).clamp(0, 1).to(self.where), y.to(self.where)
        victim, ball = Undefended(_Unit(net).eval(), self.data.classes), Ball(config.norm, config.eps)
        moved = pgd(victim, x, y, ids, Pgd(ball, _STEPS, config.eps / 10), seed=self.recipe.seed)
        found = predictions(victim, moved, ids, seed=self.recipe.seed, draws=1)
        return float((found[:, 0] == y.cpu()).double().mean())

    def preview(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Accuracy on the test split; a classifier makes no pictures."""
        return Result({"accuracy": self._right(averaged["classifier"], self.test) / len(self.test)})

    @torch.no_grad()  # a measurement
    def _right(self, net: nn.Module, split: data.DataSet) -> int:
        found = 0
        for part in torch.split(torch.arange(len(split)), 1000):
            x, y = split.batch(part)
            found += int((net(x.to(self.where)).argmax(1).cpu() == y).sum())
        return found

    @torch.no_grad()  # a measurement
    def finish(self, averaged: Mapping[str, nn.Module]) -> Result:
        """Accuracy on both splits, the number right of the test split, and the yardstick of its feature space."""
        net = averaged["classifier"]
        assert isinstance(net, SmallCnn)

        def extract(x: Tensor) -> Tensor:
            return torch.cat([net.features(p.to(self.where)).cpu().double() for p in torch.split(x, 1000)])

        right = self._right(net, self.test)
        figures = {
            "accuracy": right / len(self.test),
            "accuracy_train": self._right(net, self.data) / len(self.data),
            "right": float(right),
            "of": float(len(self.test)),
            "fd_halves": halves(self.data, self.test, extract),
        }
        if self.config.adversarial is not None:
            figures["accuracy_pgd"] = self._under_attack(net)
        header = {
            "kind": "classifier",
            "net": self.recipe.net.model_dump(mode="json"),
            "data": {"name": self.data.name, "shape": self.data.shape, "classes": self.data.classes},
            "licence": "Apache-2.0",
        }
        return Result(figures, exports={"classifier": Export(net, header)})


class _Unit(nn.Module):
    """`net`, which learned images in [-1, 1], as attacks see it: images in [0, 1] -> logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(2 * x - 1)
        return out


def _shifted(x: Tensor, most: int, gen: torch.Generator) -> Tensor:
    """Each image translated by its own random offset of at most `most` pixels per axis, the border repeated."""
    if most == 0:
        return x
    n, c, h, w = x.shape
    offset = rows.randint(2 * most + 1, (2, n, 1), gen, dim=1, device=x.device)
    padded = F.pad(x, (most,) * 4, mode="replicate")
    down = (offset[0] + torch.arange(h, device=x.device))[:, None, :, None].expand(n, c, h, padded.shape[3])
    columns = (offset[1] + torch.arange(w, device=x.device))[:, None, None, :].expand(n, c, h, w)
    return padded.gather(2, down).gather(3, columns)
