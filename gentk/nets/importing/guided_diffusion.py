"""Weights of openai/guided-diffusion (Dhariwal & Nichol 2021, arXiv:2105.05233): a bare state dict of an ADM.

The file says nothing of its architecture beyond shapes: what differs from the 256-pixel ImageNet network is told by
settings. `attention_order` is how a head's q, k and v lie: "new" where `use_new_attention_order` was on (the 64-pixel
network), else "legacy". The process is `discrete`: linear betas, at 64 pixels those of `process.schedule` (cosine for
64x64_diffusion.pt).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

from torch import Tensor

from gentk.errors import GentkError, RecipeError
from gentk.nets import keymaps, pickles
from gentk.nets.importing import Imported, empty
from gentk.nets.importing.settings import Settings
from gentk.nets.inert import what
from gentk.recipe import schema


def read(path: Path, settings: Settings) -> Imported:
    """The network of the state dict. Raises GentkError for another content, RecipeError for what must be said."""
    content = pickles.read(path)
    state = content if isinstance(content, dict) else {}
    first, last = state.get("input_blocks.0.0.weight"), state.get("out.2.weight")
    if not all(isinstance(v, Tensor) for v in (first, last, *state.values())):
        kind = f"the keys {', '.join(map(str, list(state)[:6]))}" if state else what(content)
        raise GentkError(f"{path}: not a state dict of guided-diffusion but {kind}", hint="is --as another format?")
    first, last = cast(Tensor, first), cast(Tensor, last)
    shape = settings.shape(first.shape[1])
    classes = len(state["label_emb.weight"]) if "label_emb.weight" in state else 0
    if not settings.given("attention_order") or (shape[1] == 64 and not settings.given("process.schedule")):
        raise RecipeError(
            f"{path}: the file does not say how its attention is laid out"
            + (" nor how it was noised" if shape[1] == 64 else ""),
            hint="--set attention_order=legacy (256 pixels, LSUN) or new (trained with use_new_attention_order)"
            + (" and --set process.schedule=cosine (64x64_diffusion.pt) or linear" if shape[1] == 64 else ""),
        )
    order = settings.choice("attention_order", ("legacy", "new"), "legacy")
    section = settings.section(
        schema.Adm, "net", name="adm", width=first.shape[0], learned_sigma=last.shape[0] == 2 * first.shape[1]
    )
    mapped = keymaps.guided_diffusion(state, empty(section, shape, classes), cast(Literal["legacy", "new"], order))
    return Imported(
        net=section,
        shape=shape,
        classes=classes,
        process=settings.section(schema.Discrete, "process", name="discrete"),
        predicts="eps",
        inputs=schema.Inputs(scale="process", label="time", factor=1.0, offset=-1.0),
        state=mapped,
        facts={"format": "guided-diffusion", "attention_order": order},
    )
