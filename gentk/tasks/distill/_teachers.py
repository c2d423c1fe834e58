"""What is distilled: a model of pixels or points, with or without classes, or one of latents with prompts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gentk.engine.one_step import Conditions, Labels, check_guidable
from gentk.engine.prompt_list import PromptList
from gentk.errors import RecipeError
from gentk.nets.energy import Energy
from gentk.nets.text.codec import Codec
from gentk.nets.text.prompts import Prompts
from gentk.processes import latent
from gentk.processes.denoiser import Denoiser
from gentk.processes.energies import denoising, within
from gentk.processes.guidance import guided
from gentk.processes.models import Model, fast_layout
from gentk.processes.process import Process
from gentk.recipe import pipelines
from gentk.recipe.prompts import read
from gentk.tasks.distill import Guidance

_SHOWN = 8  # prompts in a picture

Load = Callable[..., Model]


@dataclass(frozen=True)
class Taught:
    """A teacher. `conditions` are what its samples are of, `cycle` those of shown ones in turn; `shown`: how many.

    `codec` makes images of latents (n, C, h, w), None where samples are what they look like; `notes` are for the user.
    `begin` is what fake score and generator start from where it is not the teacher itself: an energy's U-Net.
    """

    model: Model
    conditions: Conditions
    cycle: tuple[int, ...] | Prompts
    shown: int
    codec: Codec | None = None
    notes: tuple[str, ...] = ()
    begin: Denoiser | None = None

    @property
    def denoiser(self) -> Denoiser:
        """The teacher itself."""
        assert isinstance(self.model.net, Denoiser)
        return self.model.net

    def seen(self, x: Tensor, where: torch.device) -> Tensor:
        """Samples as they are looked at, on the CPU: images of latents; others as they are."""
        if self.codec is None:
            return x
        with torch.no_grad():  # one by one: an image of 1024 pixels takes gigabytes on its way
            parts = [self.codec.decode(one[None].to(where)).float().cpu() for one in x]
        return torch.cat(parts).clamp(-1, 1)


class Guided(nn.Module):
    """A guided denoiser as one that can be drawn from."""

    def __init__(self, of: Denoiser, scale: float) -> None:
        super().__init__()
        self.of, self.scale = of, scale

    @property
    def process(self) -> Process:
        """The denoiser's process."""
        return self.of.process

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """x0 (B, ...) of x (B, ...) at t."""
        return guided(self.of, self.scale)(x, t, cond)


def taught(recipe: Any, where: torch.device, load: Load) -> Taught:
    """The recipe's teacher, `load`ed or, where it is a text-to-image model, by `processes.latent`.

    Raises RecipeError where parts do not fit, MissingAsset where one is absent.
    """
    guidance: Guidance = recipe.method.guidance
    if pipelines.is_text(recipe.teacher):
        return _of_prompts(recipe, guidance, where)
    if recipe.prompts is not None:
        raise RecipeError(
            f"prompts: `{recipe.teacher}` is no text-to-image model", hint=f"one of {', '.join(pipelines.BY_NAME)}"
        )
    model, begin = load(recipe.teacher, kinds=("denoiser", "energy"), where=where), None
    fast_layout(model.net)
    if isinstance(model.net, Energy):
        inner = within(model)
        assert isinstance(inner.net, Denoiser)
        model, begin = Model(model.name, denoising(model).net, inner.header), inner.net
    _check(guidance, model)
    return Taught(
        model,
        Labels(model.classes),
        tuple(range(model.classes)),
        100 if len(model.shape) == 3 else 2000,
        begin=begin,
    )


def _of_prompts(recipe: Any, guidance: Guidance, where: torch.device) -> Taught:
    if recipe.prompts is None:
        raise RecipeError(
            f"prompts: `{recipe.teacher}` is asked for something by prompts", hint="--prompts FILE, one in each line"
        )
    if recipe.measure is not None or recipe.reference is not None:
        raise RecipeError(
            "measure: there are no data to compare a text-to-image model with here",
            hint="--set measure=null; `gentk evaluate` knows GenEval, CLIP, ImageReward, ... of what it draws",
        )
    texts = [record.text for record in read(recipe.prompts)]  # before gigabytes are read
    loaded = latent.load(recipe.teacher, where=where, section=recipe.latent)
    if loaded.sigma_init is not None:
        raise RecipeError(
            f"teacher: `{recipe.teacher}` is a one-step generator, here a model of many steps is needed",
            hint=f"teachers are {', '.join(pipelines.BY_NAME)}, or folders of such pipelines",
        )
    _check_hidden(guidance)
    prompts = PromptList.of(texts, loaded.prompter, where)
    notes = tuple(
        f"{count} prompts are longer than the {loaded.prompter.limits[encoder]} tokens that {encoder} reads: their "
        "ends are not learned"
        for encoder, count in loaded.prompter.cut.items()
        if count
    )
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    return Taught(loaded.model, prompts, prompts.embedded[:_SHOWN], _SHOWN, loaded.codec, notes)


def _check(guidance: Guidance, model: Model) -> None:
    """Raises RecipeError for guidance that this teacher cannot have."""
    if guidance == Guidance():
        return
    check_guidable(model, "method.guidance", hint="leave guidance out")
    _check_hidden(guidance)


def _check_hidden(guidance: Guidance) -> None:
    if guidance.fake_eval != 1 and not guidance.label_dropout and guidance.fake_train == 1:
        raise RecipeError(
            "method.guidance.fake_eval: the fake score never learns its call without a label",
            hint="set guidance.label_dropout above 0, or fake_train as well",
        )
