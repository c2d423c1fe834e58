"""Published models made into gentk's own files: one format of others = one file here, with `read`.

`gentk.recipe.teachers.FORMATS` lists them. No network is run here and no code of the files either; every tensor must
have its place in our network.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentk import nets
from gentk.errors import GentkError, RecipeError
from gentk.nets import weights
from gentk.nets.importing.settings import Settings
from gentk.recipe import schema, teachers

_MODULES = {"diffusers": "diffusers_folder", "ddpm": "diffusers_folder"}  # others lie in a file of their name


@dataclass(frozen=True)
class Imported:
    """A denoiser as `gentk.processes.models` describes it; `state` has the names of the network of section `net`.

    `facts` is what the file says of itself, for the header; `licence` what it says of that, if anything.
    """

    net: schema.Net
    shape: tuple[int, int, int]
    classes: int
    process: schema.Process
    predicts: schema.Predicts
    inputs: schema.Inputs
    state: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    sigma_data: float = 0.5
    licence: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path, form: str, values: Mapping[str, Any], data: str | None) -> Imported:
    """The model in the file or folder `path` of the format `form`.

    `values`: settings that the file does not hold, by key; `data`: the data set that it must fit. Raises RecipeError
    for an unknown format or setting and for a data set of another shape; what the format's own `read` raises.
    """
    teachers.check_format(form)
    settings = Settings(values, teachers.SHAPES.get(data or "", (None, 0))[0])
    try:
        found: Imported = _module(form).read(path, settings)
    except GentkError as error:
        if type(error) is not GentkError or str(path) in str(error):
            raise
        raise GentkError(f"{path}: {error}", hint=error.hint) from error  # the maps of names know no file
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # content of kinds that no such file has
        raise GentkError(f"{path}: not what `--as {form}` reads: {error}", hint="another format, or damaged") from error
    settings.finish()
    if data in teachers.SHAPES:
        shape, classes = teachers.SHAPES[data]
        if found.shape != shape:
            raise RecipeError(
                f"{path}: makes samples of shape {found.shape}, `{data}` has {shape}",
                hint="name the data set that it was trained on by --data",
            )
        if found.classes not in (0, classes):
            raise RecipeError(f"{path}: knows {found.classes} classes, `{data}` has {classes}")
    if bad := next((k for k, v in found.state.items() if not bool(v.isfinite().all())), None):
        raise GentkError(f"{path}: `{bad}` holds NaN or infinity", hint="the training diverged, or the file is damaged")
    return found


def _module(form: str) -> Any:
    return importlib.import_module(f"gentk.nets.importing.{_MODULES.get(form, form.replace('-', '_'))}")


def save(found: Imported, out: Path, *, data: str, licence: str, origin: Mapping[str, Any]) -> None:
    """Writes `out`, whole or not at all. `origin`: `source`, `sha256` and what else tells where the model is from.

    Raises RunFailed where the disk refuses.
    """
    net = empty(found.net, found.shape, found.classes)
    # copies: parts of one mapped file must not be taken for tensors that share memory
    net.load_state_dict({k: v.to(torch.float32, copy=True) for k, v in found.state.items()}, assign=True)
    header = {
        "kind": "denoiser",
        "net": found.net.model_dump(mode="json"),
        "process": found.process.model_dump(mode="json"),
        "predicts": found.predicts,
        "inputs": found.inputs.model_dump(mode="json"),
        "sigma_data": found.sigma_data,
        "data": {
            "name": data,
            "shape": found.shape,
            "classes": found.classes,
            "range": (-1, 1),
            "section": schema.Data(name=data).model_dump(mode="json"),
        },
        "licence": licence,
        "imported": dict(found.facts),
        **found.more,
        **origin,
    }
    weights.save(out, net, header)


def empty(section: schema.Net, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network of a section without memory for its weights: names and shapes."""
    with torch.device("meta"):
        return nets.build(section, shape=shape, classes=classes)
