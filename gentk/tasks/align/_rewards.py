"""Rewards that a generator is tuned to: one differentiable number per sample, frozen, and checked before they pull.

    r(x0, c) = sum_k weight_k min((r_k(image, c) - mean_k) / std_k, cap_k)

`image` is x0 (decoded, where the generator makes latents) put into [-1, 1] straight through: its value is clamped, its
gradient is not, since a clamp alone would let no reward pull back what lies outside.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentk import rewards
from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.processes.models import load
from gentk.tasks.align import Brightness, ClassReward, Function, Preference

Value = Callable[[Tensor, Any], Tensor]
"""(images in [-1, 1] or other samples (B, ...), conditions) -> (B,)."""


@dataclass(frozen=True)
class Subject:
    """What a reward has to know of the generator: the data's name, the shape of what it judges, classes, prompts."""

    data: str
    shape: tuple[int, ...]
    classes: int
    texts: bool = False


@dataclass(frozen=True)
class Term:
    """One reward of the sum. `net` holds the parameters that must stay what they are, if it has any."""

    name: str
    value: Value
    section: Any
    net: nn.Module | None = None

    def scaled(self, raw: Tensor) -> Tensor:
        """Its share of the sum."""
        r = (raw - self.section.mean) / self.section.std
        share: Tensor = self.section.weight * (r if self.section.cap is None else r.clamp(max=self.section.cap))
        return share


class Rewards:
    """The weighted sum. `rewards(images, cond)` is ((B,) total, {name: (B,) as it is before normalisation})."""

    def __init__(self, sections: Sequence[Any], subject: Subject, where: torch.device) -> None:
        self.terms = [_build(section, subject, where, f"method.rewards[{k}]") for k, section in enumerate(sections)]

    def __call__(self, images: Tensor, cond: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and parts, with gradient in `images`."""
        parts: dict[str, Tensor] = {}
        total = images.new_zeros(len(images))
        for k, term in enumerate(self.terms):
            raw = term.value(images, cond).float()
            total = total + term.scaled(raw)
            parts[term.name if term.name not in parts else f"{term.name}-{k + 1}"] = raw.detach()
        return total, parts

    @property
    def nets(self) -> list[nn.Module]:
        """The networks behind them."""
        return [term.net for term in self.terms if term.net is not None]

    def check(self, images: Tensor, cond: Any) -> None:
        """Each reward on some samples: of the right shape, finite, and differentiable in them.

        A scorer that takes PIL images or returns numbers for people cuts the graph in silence, and a run with it would
        look like one that gains nothing. Raises RecipeError that names the reward.
        """
        for k, term in enumerate(self.terms):
            _check(term, images, cond, f"method.rewards[{k}]: `{term.name}`")


def _check(term: Term, images: Tensor, cond: Any, place: str) -> None:
    leaf = images.detach().requires_grad_()
    try:
        value = term.value(leaf, cond)
    except GentkError:
        raise
    except Exception as error:  # the user's own code: whatever it raises is a fault of the recipe's reward
        if not isinstance(term.section, Function):
            raise
        raise RecipeError(f"{place}: {type(error).__name__}: {error}", hint="f(samples, conditions) -> (B,)") from error
    if not isinstance(value, Tensor):
        raise RecipeError(
            f"{place}: not differentiable: it returned {type(value).__name__}, not a tensor",
            hint="a reward for training is a tensor made of the samples by torch alone",
        )
    if value.shape != (len(images),):
        raise RecipeError(f"{place}: it returned shape {tuple(value.shape)}, expected ({len(images)},): one per sample")
    if not bool(torch.isfinite(value).all()):
        raise RecipeError(
            f"{place}: not finite on the generator's own samples",
            hint="decode and score in float32 or bfloat16; float16 overflows",
        )
    gradient = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
    if gradient is None:
        raise RecipeError(
            f"{place}: not differentiable: no gradient reaches the samples",
            hint="it must not detach, round, go through numpy or PIL, or run under no_grad",
        )
    if not bool(torch.isfinite(gradient).all()):
        raise RecipeError(f"{place}: its gradient is not finite on the generator's own samples")
    if not bool(gradient.any()):
        raise RecipeError(
            f"{place}: its gradient is zero everywhere on the generator's own samples",
            hint="a step function, or a value capped inside the function, pulls nowhere",
        )


def _build(section: Any, subject: Subject, where: torch.device, place: str) -> Term:
    match section:
        case ClassReward():
            return _class(section, subject, where, place)
        case Brightness():
            if len(subject.shape) != 3:
                raise RecipeError(f"{place}: brightness is of images, this generator makes {subject.shape}")
            return Term("brightness", lambda x, cond: (x.flatten(1).mean(1) + 1) / 2, section)
        case Function():
            return Term(section.of, function(section.of, place), section)
        case Preference():
            return _preference(section, subject, where, place)
    raise RecipeError(f"{place}: unknown reward `{section.name}`")


def _class(section: ClassReward, subject: Subject, where: torch.device, place: str) -> Term:
    name = section.classifier or f"classifier-{subject.data}"
    try:
        model = load(name, kinds=("classifier",), where=where)
    except MissingAsset as error:
        if section.classifier is not None:
            raise
        raise MissingAsset(
            f"{place}: no classifier `{name}`, the one that goes with the generator's data",
            hint=f"gentk train classifier --data {subject.data}; then --set 'method.rewards=[{{name: class, "
            "classifier: RUN}]'",
        ) from error
    if model.shape != subject.shape:
        raise RecipeError(f"{place}: `{name}` takes samples of shape {model.shape}, these have {subject.shape}")
    if section.target is None and subject.classes != model.classes:
        of = "no classes" if not subject.classes else f"{subject.classes} classes"
        raise RecipeError(
            f"{place}: `{name}` knows {model.classes} classes, the generator has {of}", hint="set target: a class"
        )
    if section.target is not None and section.target >= model.classes:
        raise RecipeError(f"{place}.target: {section.target} is not one of {model.classes} classes")

    def value(x: Tensor, cond: Tensor | None) -> Tensor:
        log = model.net(x).float().log_softmax(1)
        asked = cond if section.target is None else torch.full((len(x),), section.target, device=x.device)
        assert asked is not None
        found: Tensor = log.gather(1, asked[:, None])[:, 0]
        return found

    return Term("class", value, section, model.net)


def function(name: str, place: str) -> Value:
    """MODULE:FUNCTION, from Python's path or beside the user. Raises MissingAsset or RecipeError."""
    module, _, called = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # a user's file beside them, as `python -m` would find it
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module}.".startswith(f"{error.name}."):
            raise
        raise MissingAsset(f"{place}: no module `{module}`", hint="MODULE:FUNCTION, a file in your folder") from error
    made = getattr(found, called, None)
    if not callable(made):
        raise RecipeError(f"{place}: `{module}` has no function `{called}`")
    value: Value = made
    return value


def _preference(section: Preference, subject: Subject, where: torch.device, place: str) -> Term:
    if len(subject.shape) != 3 or subject.shape[0] not in (1, 3):
        raise RecipeError(f"{place}: `{section.name}` judges grey or RGB images, this generator makes {subject.shape}")
    wanted = 0 if subject.texts else max(1, subject.classes)
    if len(section.prompts) != wanted and (section.prompts or section.name != "aesthetic"):
        raise RecipeError(
            f"{place}.prompts: {len(section.prompts)} for "
            + ("a model that is asked by prompts" if subject.texts else f"{subject.classes} classes"),
            hint="leave them out" if subject.texts else "one for each class, such as [a photo of a zero, ...]; or one",
        )
    net = network(section.name, section.weights, where, place)

    def value(x: Tensor, cond: Any) -> Tensor:
        texts = _texts(section.prompts, cond, len(x))
        found: Tensor = net(((x + 1) / 2).expand(-1, 3, -1, -1), texts)
        return found

    return Term(section.name, value, section, net)


def network(name: str, weights: str | None, where: torch.device, place: str) -> Any:
    """The frozen network of a preference. Raises MissingAsset with the file where its weights are absent."""
    try:
        return _network(name, weights, where)
    except MissingAsset as error:  # the remedy is that of `gentk evaluate`; a reward is a record of the recipe
        here = rf"--set 'method.rewards=[{{name: {name}, weights: \1}}]'"
        hint = re.sub(r"--weights (\w+)", here, error.hint or "")
        raise MissingAsset(f"{place}: {error}", hint=re.sub(r",? or [^,;]*--set method\.\w+=PATH", "", hint)) from error


def _network(name: str, weights: str | None, where: torch.device) -> Any:
    from gentk.rewards import aesthetic, clip, hps, image_reward, pick

    file = None if weights is None else Path(weights)
    net: rewards.Reward
    match name:
        case "image-reward":
            net = image_reward.build(file, where=where)
        case "hps":
            net = hps.build(file, where=where)
        case "pick":
            net = pick.build(weights, where=where)
        case "clip":
            net = clip.build(weights, where=where)
        case _:
            net = aesthetic.build(weights, where=where)
    return net


def _texts(prompts: tuple[str, ...], cond: Any, n: int) -> list[str]:
    """The prompt of each sample: what it was made from, that of its class, or the one for all."""
    if isinstance(cond, Tensor):
        return [prompts[k] for k in cond.tolist()] if prompts else [""] * n
    return [*prompts[:1], ""][:1] * n if cond is None else list(cond.texts)


def cut(of: Rewards, texts: Sequence[str]) -> list[str]:
    """A sentence for each reward that reads only the beginning of some of these prompts."""
    found = []
    for term in of.terms:
        count = getattr(term.net, "cut", None)
        longer = count(term.section.prompts or texts) if count is not None else 0
        if longer:
            found.append(f"{longer} prompts are longer than `{term.name}` reads: their ends are not rewarded")
    return found


def inside(x: Tensor) -> Tensor:
    """Images in [-1, 1]: the value clamped, the gradient as if it were not."""
    return x + (x.clamp(-1, 1) - x).detach()


def checksum(nets: Sequence[nn.Module]) -> float:
    """A number that changes with any parameter or buffer of these networks."""
    tensors = [p.double() for net in nets for p in net.state_dict().values()]
    return sum(float((k + 1) * p.abs().sum() + p.sum()) for k, p in enumerate(tensors))
