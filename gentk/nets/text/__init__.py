"""Networks of text-to-image models, by diffusers' own classes: latents, noise level and embedded prompts in.

    net(x (B, C, h, w), label (B,), cond: Prompts | None) -> (B, C, h, w)

`core` is diffusers' module, whose tensors have `core.` before their names; `cond=None` is the null prompt, which
`set_null` gives. What the label is and what comes out is the scheduler's business (`scheduler`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gentk.errors import GentkError, MissingAsset
from gentk.recipe import extras
from gentk.recipe.pipelines import NETWORK, Family, read_json

_MODULES = {"unet": "unet_condition", "pixart": "pixart", "sd3": "sd3"}


def build(family: Family, config: Mapping[str, Any]) -> Any:
    """The network of a diffusers config, with the random weights that diffusers gives it.

    Raises MissingAsset without diffusers, GentkError for a config that the adapter does not fit.
    """
    module = _module(family)
    return _wrapped(family, getattr(diffusers(), module.CLASS).from_config(dict(config)))


def load(family: Family, place: Path, dtype: torch.dtype) -> Any:
    """The network of the pipeline in the folder `place`. Raises as `build`, and MissingAsset for absent weights."""
    return _wrapped(family, part(_module(family).CLASS, place / NETWORK[family], dtype))


def part(name: str, place: Path, dtype: torch.dtype) -> Any:
    """diffusers' class `name` with the weights in the folder `place`, in evaluation mode and without gradients.

    Raises MissingAsset where there are none as safetensors, GentkError for a folder of another model.
    """
    config, stem = read_json(place / "config.json"), "diffusion_pytorch_model"
    if config.get("_class_name", name) != name:
        raise GentkError(f"{place}: a {config['_class_name']}, not a {name}")
    variant = None
    if not any(place.glob(f"{stem}.safetensors")) and not any(place.glob(f"{stem}.safetensors.index.json")):
        variant = "fp16" if any(place.glob(f"{stem}.fp16*.safetensors")) else None
        if variant is None:
            pickled = any(place.glob("*.bin"))
            raise MissingAsset(
                f"{place}: no {stem}.safetensors" + (", and .bin files are pickles" if pickled else ""),
                hint="the folder is not whole: fetch or copy it again; save_pretrained(FOLDER) writes it",
            )
    try:
        net, info = getattr(diffusers(), name).from_pretrained(
            place,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=find_spec("accelerate") is not None,  # it warns of an absent one
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise GentkError(f"{place}: no {name}: {str(error).splitlines()[0]}", hint="fetch or copy it again") from error
    if missing := sorted(info["missing_keys"]):  # diffusers would leave noise there
        raise GentkError(f"{place}: no {name}: missing {', '.join(missing[:4])}{', ...' if missing[4:] else ''}")
    nn.Module.to(net, dtype)  # diffusers' own `to` warns of modules to keep in float32, also where there are none
    return net.eval().requires_grad_(False)


def _wrapped(family: Family, core: Any) -> Any:
    module = _module(family)
    if odd := module.misfit(core.config):
        raise GentkError(f"a {module.CLASS} {odd}", hint="gentk runs those of plain text-to-image pipelines")
    return module.Net(core)


def _module(family: Family) -> Any:
    return importlib.import_module(f"gentk.nets.text.{_MODULES[family]}")


def diffusers() -> Any:
    """The package, which draws no progress bars of its own. Raises MissingAsset as `extras.load`."""
    package = extras.load("diffusers", "t2i")
    package.utils.logging.disable_progress_bar()
    return package
