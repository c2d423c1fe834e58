"""What is aligned: a one-step generator with its reference, as pixels with classes, or as latents with prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gentk.engine.one_step import Conditions, Labels, check_guidable
from gentk.engine.prompt_list import PromptList
from gentk.errors import RecipeError
from gentk.nets.text.prompts import Prompts
from gentk.processes import latent, models, rows
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import Model, fast_layout
from gentk.recipe import pipelines
from gentk.recipe.prompts import Latent, read
from gentk.tasks.align import AlignSettings
from gentk.tasks.align._rewards import Subject

WATCHED = 16  # prompts looked at of those that training asks for; and held out, where the recipe names none


@dataclass(frozen=True)
class Given:
    """A generator and its reference. `of` describes the generator; `learned` are the conditions that training asks for,
    `watched` those that are looked at, in turn, and `held` (watched.count,) which of them training never asks for."""

    of: Model
    generator: Denoiser
    reference: Model
    teacher: Denoiser
    sigma_init: float
    learned: Conditions
    watched: Conditions
    held: Tensor
    about: Subject
    decode: Callable[[Tensor], Tensor] | None = None
    notes: tuple[str, ...] = ()
    batch: int = 500  # samples looked at in one go


@dataclass(frozen=True)
class Said(Prompts):
    """Embedded prompts with their words, which rewards read."""

    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sayings:
    """A `PromptList` whose prompts keep their words."""

    of: PromptList

    @property
    def count(self) -> int:
        """The number of prompts."""
        return self.of.count

    def draw(self, n: int, gen: torch.Generator, where: torch.device) -> Said:
        """n prompts, uniform with repetition, by `gen` alone: those that the list itself draws."""
        return self.take(rows.randint(self.count, (n,), gen, device=gen.device), where)

    def take(self, index: Tensor, where: torch.device) -> Said:
        """Those of the numbers `index` (n,) int64."""
        found = self.of.take(index, where)
        return Said(found.embeds, found.mask, found.pooled, tuple(self.of.texts[k] for k in index.tolist()))

    def hide(self, cond: Prompts, hidden: Tensor) -> Prompts:
        """The null prompt where `hidden` (n,) is true."""
        return self.of.hide(cond, hidden)


def given(recipe: Any, where: torch.device) -> Given:
    """What the recipe names, loaded. Raises RecipeError where parts do not fit, MissingAsset where one is absent."""
    if pipelines.is_text(recipe.generator):
        return _text(recipe, where)
    if recipe.prompts is not None or recipe.held_out_prompts is not None:
        raise RecipeError(
            f"prompts: `{recipe.generator}` is no text-to-image model", hint=f"one of {', '.join(pipelines.BY_NAME)}"
        )
    if recipe.latent != Latent():
        raise RecipeError(f"latent: `{recipe.generator}` makes images, not latents", hint="leave it out")
    return _classes(recipe, where)


def _classes(recipe: Any, where: torch.device) -> Given:
    config: AlignSettings = recipe.method
    model = models.load(recipe.generator, kinds=("generator",), where=where)
    name = recipe.teacher or model.header.get("teacher")
    if not name:
        raise RecipeError(f"teacher: `{recipe.generator}` does not say what made it", hint="--set teacher=NAME")
    reference = models.load(str(name), kinds=("denoiser",), where=where)
    _fit(model, reference, recipe)
    bad = [k for k in config.held_out if k >= reference.classes]
    if bad:
        raise RecipeError(f"method.held_out: {bad[0]} is not one of {reference.classes} classes")
    learned = tuple(k for k in range(reference.classes) if k not in config.held_out) if config.held_out else ()
    if config.held_out and not learned:
        raise RecipeError("method.held_out: no class is left to learn from")
    _check_guidance(config, reference)
    generator, teacher = fast_layout(model.net), fast_layout(reference.net)
    assert isinstance(generator, Denoiser)
    assert isinstance(teacher, Denoiser)
    return Given(
        model,
        generator,
        reference,
        teacher,
        _sigma_init(config, model.header, recipe.generator),
        Labels(model.classes, learned),
        Labels(model.classes),
        torch.tensor([k in config.held_out for k in range(max(1, model.classes))]),
        Subject(model.header["data"]["name"], model.shape, model.classes),
    )


def _text(recipe: Any, where: torch.device) -> Given:
    config: AlignSettings = recipe.method
    if recipe.prompts is None:
        raise RecipeError(
            f"prompts: `{recipe.generator}` is asked for something by prompts", hint="--prompts FILE, one in each line"
        )
    if recipe.prompts.negative or recipe.prompts.per_prompt != 1:
        key = "negative" if recipe.prompts.negative else "per_prompt"
        raise RecipeError(
            f"prompts.{key}: training draws prompts at random and guides away from the null prompt",
            hint="leave it out",
        )
    if recipe.measure is not None:
        raise RecipeError(
            "measure: there are no data to compare a text-to-image model with here",
            hint="leave it out; rewards are measured, and `gentk evaluate` knows GenEval, CLIP, ImageReward, ...",
        )
    if config.held_out:
        raise RecipeError("method.held_out: is of classes", hint="held_out_prompts: {file: FILE}")
    loaded = latent.load(recipe.generator, where=where, section=recipe.latent)
    made = loaded.sigma_init is not None
    name = recipe.teacher or (loaded.header.get("teacher") if made else recipe.generator)
    # a generator that starts as its reference shares its weights, so that adapters need no second copy of them
    other = loaded if name == recipe.generator else latent.load(str(name), where=where, section=recipe.latent)
    _fit(loaded.model, other.model, recipe)
    texts = [record.text for record in read(recipe.prompts)]
    last = min(len(texts) // 10, WATCHED)
    held = texts[len(texts) - last :]
    if recipe.held_out_prompts is None:
        texts = texts[: len(texts) - last]
    else:
        held = [record.text for record in read(recipe.held_out_prompts)]
    known = set(texts) & set(held)
    if known:
        raise RecipeError(f"held_out_prompts: training asks for {len(known)} of them, as `{min(known)}`")
    watched = texts[:WATCHED]
    every = PromptList.of([*texts, *held], loaded.prompter, where)
    both = PromptList(
        (*watched, *held), _at(every, [*range(len(watched)), *range(len(texts), every.count)]), every.null
    )
    learned = replace(every, texts=tuple(texts), embedded=every.embedded[: len(texts)])
    notes = [
        f"{count} prompts are longer than the {loaded.prompter.limits.get(encoder, '?')} tokens that {encoder} reads"
        for encoder, count in loaded.prompter.cut.items()
        if count
    ]
    micro = recipe.train.batch // recipe.train.accumulate
    return Given(
        loaded.model,
        loaded.denoiser,
        other.model,
        other.denoiser,
        _sigma_init(config, loaded.header, recipe.generator),
        Sayings(learned),
        Sayings(both),
        torch.tensor([k >= len(watched) for k in range(both.count)]),
        Subject("text", (3, loaded.pixels, loaded.pixels), 0, texts=True),
        loaded.codec.decode,
        tuple(notes),
        min(micro, 8),
    )


def _at(every: PromptList, numbers: list[int]) -> Prompts:
    return every.embedded[numbers]


def _sigma_init(config: AlignSettings, header: dict[str, Any], name: str) -> float:
    own = header.get("sigma_init")
    if config.sigma_init is not None and own is not None and float(own) != config.sigma_init:
        raise RecipeError(f"method.sigma_init: `{name}` is called at {own}", hint="leave it out")
    if own is not None:
        return float(own)
    if config.sigma_init is None:
        raise RecipeError(
            f"method.sigma_init: `{name}` is no one-step generator yet, it starts as its teacher",
            hint="the noise level of its one call: 2.5 in SIM and SiD; or give a distilled generator",
        )
    return config.sigma_init


def _fit(model: Model, reference: Model, recipe: Any) -> None:
    """Raises RecipeError where generator and reference are not of the same data and process."""
    for what, mine, its in (
        ("samples of shape", model.shape, reference.shape),
        ("classes:", model.classes, reference.classes),
        ("the process", model.header["process"], reference.header["process"]),
    ):
        if mine != its:
            raise RecipeError(
                f"teacher: `{reference.name}` has {what} {its}, the generator `{recipe.generator}` {mine}",
                hint="the reference is the diffusion model that the generator was distilled from",
            )


def _check_guidance(config: AlignSettings, reference: Model) -> None:
    """Raises RecipeError where guidance has nothing to work with."""
    if config.alpha_cfg:
        check_guidable(reference, "method.alpha_cfg", hint="leave it at 0")
