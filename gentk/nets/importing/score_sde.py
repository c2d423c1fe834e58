"""Checkpoints of score_sde_pytorch with continuous time: {optimizer, model, ema, step}, of which `ema` is taken.

    network    told by                 process   D
    DDPM++     no `all_modules.0.W`    vp        x / alpha - s F(x, 999 t)
    NCSN++     `all_modules.0.W`       ve        x + s F(x, ln(s / 2)), s being twice theirs: their images are in [0, 1]

arXiv:2011.13456. Sub-VP has another alpha and sigma and is not told from VP by the file: it cannot be imported.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from gentk.errors import GentkError
from gentk.nets import keymaps, pickles
from gentk.nets.importing import Imported, empty
from gentk.nets.importing.settings import Settings, Shape
from gentk.nets.inert import what
from gentk.recipe import schema


def read(path: Path, settings: Settings) -> Imported:
    """The moving average of the checkpoint. Raises GentkError for another layout or architecture."""
    section, shape, state, facts = average(path, settings)
    if section.embedding == "fourier":
        process: schema.Process = settings.section(schema.VE, "process", name="ve", sigma_min=0.02, sigma_max=100.0)
        predicts: schema.Predicts = "reverse-eps"
        inputs = schema.Inputs(scale="process", label="log-ratio", factor=1.0, offset=-math.log(2))
    else:
        process, predicts = settings.section(schema.VP, "process", name="vp"), "eps"
        inputs = schema.Inputs(scale="process", label="time", factor=999.0)
    return Imported(
        net=section,
        shape=shape,
        classes=0,
        process=process,
        predicts=predicts,
        inputs=inputs,
        state=state,
        facts={"format": "score-sde", **facts},
    )


def average(path: Path, settings: Settings) -> tuple[schema.SongUNet, Shape, dict[str, Tensor], dict[str, Any]]:
    """Section, shape of a sample, state and facts of the moving average that a checkpoint holds.

    Defaults are those of the published CIFAR-10 networks, the width is the file's. Raises GentkError for another
    layout.
    """
    content = pickles.read(path)
    try:
        model, shadow = dict(content["model"]), list(content["ema"]["shadow_params"])
    except (KeyError, TypeError, ValueError):
        kind = f"the keys {', '.join(map(str, list(content)[:6]))}" if isinstance(content, dict) else what(content)
        raise GentkError(
            f"{path}: not a checkpoint with `model` and `ema.shadow_params` but {kind}", hint="is --as another format?"
        ) from None
    first = next((v for k, v in model.items() if isinstance(v, Tensor) and v.ndim == 4), None)
    if first is None or not all(isinstance(each, Tensor) for each in (*shadow, *model.values())):
        raise GentkError(f"{path}: `model` and `ema.shadow_params` hold more than the tensors of a network, or less")
    noisy = any(k.removeprefix("module.") == "all_modules.0.W" for k in model)
    section = settings.section(
        schema.SongUNet,
        "net",
        name="songunet",
        width=first.shape[0],
        multipliers=(1, 2, 2, 2),
        embedding="fourier" if noisy else "positional",
        encoder="residual" if noisy else "standard",
        taps=(1.0, 3.0, 3.0, 1.0) if noisy else (1.0, 1.0),
    )
    shape = settings.shape(first.shape[1])
    averaged = keymaps.score_sde_ema(shadow, model)
    state = keymaps.score_sde(averaged, empty(section, shape, 0))
    step = content.get("step")
    return section, shape, state, {"step": step} if isinstance(step, int) else {}
