"""What a purify run works on: the images, the classifier, and the classifier behind its purifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gentk import data
from gentk.attacks.ball import Ball
from gentk.attacks.suite import Plan
from gentk.attacks.victim import Undefended
from gentk.defences import classifiers, prior
from gentk.defences.purified import PurifiedClassifier, fitting
from gentk.engine import rng
from gentk.errors import RecipeError
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import Model, fast_layout, load
from gentk.recipe.registry import method_module
from gentk.recipe.store import model_path


@dataclass(frozen=True, eq=False)
class Bench:
    """Images x (N, C, H, W) float32 in [0, 1], labels y and ids (N,) int64, each image once; who answers."""

    x: Tensor
    y: Tensor
    ids: Tensor
    victim: PurifiedClassifier
    bare: Undefended
    facts: dict[str, Any]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.x)

    def first(self, n: int) -> Bench:
        """The first n images."""
        return Bench(self.x[:n], self.y[:n], self.ids[:n], self.victim, self.bare, self.facts)


def build(recipe: Any, where: torch.device, **own: Any) -> Bench:
    """The bench of a recipe; `own` replaces settings of its method, for a sweep.

    Raises RecipeError for data without labels or pictures, parts that do not fit together and noise levels that the
    model has not learned; MissingAsset for what is absent.
    """
    split = data.load(recipe.data, recipe.split)
    if split.kind != "image" or split.y is None:
        raise RecipeError(f"data.name: `{recipe.data.name}` has no labelled images to defend")
    ids = _subset(len(split), recipe.scoring.images, seeds(recipe).subset)
    judge = classifiers.load(recipe.classifier, shape=split.shape, classes=split.classes, where=where)
    fitting(judge.classes, split.classes, judge.name, recipe.data.name)
    config = recipe.method.model_copy(update=own)
    module = method_module("purify", config.name)
    model = _model(recipe, config, module, split.shape, where)
    denoise = None if model is None else prior.of(model.net)  # type: ignore[arg-type]  # loaded as a Denoiser
    net = fast_layout(judge.net)
    victim = PurifiedClassifier(
        net,
        judge.classes,
        module.build(config, denoise),
        votes=recipe.votes,
        clamp=recipe.clamp,
        checkpoint=recipe.checkpoint,
    )
    facts = {
        "classifier": {"name": judge.name, "source": judge.source, "classes": judge.classes},
        "model": None if model is None else prior.facts(model),
        "defence": config.model_dump(mode="json"),
        "nfe": victim.nfe,
        "votes": recipe.votes,
        "clamp": recipe.clamp,
        "levels": module.levels(config),
    }
    x, y = split.x[ids].float().div(255).to(where), split.y[ids].to(where)
    return Bench(x, y, ids, victim, Undefended(net, judge.classes), facts)


def files(recipe: Any) -> dict[str, Path]:
    """The files that the figures depend on, by the name that the user gave them."""
    found = {} if recipe.model is None else {recipe.model: model_path(recipe.model)}
    if (path := classifiers.located(recipe.classifier)) is not None:
        found[recipe.classifier.name] = path
    return found


def plan(recipe: Any, *, eps: float | None = None, eot: int | None = None, steps: int | None = None) -> Plan:
    """The attacks' settings, with those of a sweep's cell in place of the recipe's."""
    attack, threat = recipe.attack, recipe.threat
    if steps is not None:
        attack = attack.model_copy(update={"steps": steps})
    eps = threat.eps if eps is None else eps
    return Plan(
        Ball(threat.norm, eps),
        attack.steps,
        attack.size(eps) if eps == threat.eps else attack.model_copy(update={"step": None}).size(eps),
        eot=attack.eot if eot is None else eot,
        restarts=attack.restarts,
        random_start=attack.random_start,
        grad=attack.grad,
        queries=attack.queries,
        version=attack.version,
        seed=seeds(recipe).attack,
        chunk=attack.chunk,
    )


class Seeds(NamedTuple):
    """The seeds of the attack's draws, of the answers' draws and of the choice of images."""

    attack: int
    scoring: int
    subset: int


def seeds(recipe: Any) -> Seeds:
    """The recipe's own three, moved together by its `seed`, so that they stay as different as they are."""
    own = (recipe.attack.seed, recipe.scoring.seed, recipe.scoring.subset_seed)
    return Seeds(*((each + 1_000_003 * recipe.seed) % 2**62 for each in own))


def _subset(n: int, wanted: int | None, seed: int) -> Tensor:
    """Indices of the images that are used, each once, in order."""
    if wanted is None or wanted == n:
        return torch.arange(n)
    if wanted > n:
        raise RecipeError(f"scoring.images: {wanted} are asked for, the split has {n}")
    return torch.randperm(n, generator=rng.generator(seed, "subset"))[:wanted].sort().values


def _model(recipe: Any, config: Any, module: Any, shape: tuple[int, ...], where: torch.device) -> Model | None:
    kind = getattr(module, "KIND", "denoiser")
    if kind is None:
        return None
    if recipe.model is None:
        raise RecipeError(f"`{config.name}` purifies with a {kind}: which?", hint="--model NAME|RUN|FILE")
    model = load(recipe.model, kinds=(kind,), where=where)
    assert isinstance(model.net, Denoiser)
    if model.shape != shape:
        raise RecipeError(
            f"model: `{recipe.model}` makes images of shape {model.shape}, `{recipe.data.name}` has {shape}",
            hint="another --model, or another --data",
        )
    if kind == "denoiser":
        prior.unlabelled(model)
    prior.within(model.net.process, module.levels(config))
    fast_layout(model.net)
    return model
