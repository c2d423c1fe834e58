"""Text-to-image models of others: which there are, how a user names one, and where its parts lie. No torch here.

A model is named by a name of `PIPELINES`, by a folder as diffusers writes it, by a hub id (one of `PIPELINES`, one in
the hub's cache, or any other as `hf:OWNER/NAME`), or by a safetensors file or run folder that gentk made from one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.recipe import hub, stamp, store

Family = Literal["unet", "pixart", "sd3"]
INDEX = "model_index.json"
HUB = "hf:"

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {"StableDiffusionPipeline": "unet", "PixArtAlphaPipeline": "pixart", "StableDiffusion3Pipeline": "sd3"}
)
NETWORK: Mapping[Family, str] = MappingProxyType({"unet": "unet", "pixart": "transformer", "sd3": "transformer"})

# Whole weights once: not the half-precision, non-averaged or single-file copies that lie beside them.
_FILES = (
    "*.json",
    "tokenizer*/*",
    "text_encoder*/model.safetensors",
    "text_encoder*/model-0*",
    "*/diffusion_pytorch_model.safetensors",
    "*/diffusion_pytorch_model-0*",
)


@dataclass(frozen=True)
class Pipeline:
    """One published model: gentk's name for it, its hub id, the licence of its weights, whether a form guards it."""

    name: str
    source: str
    licence: str
    note: str
    gated: bool = False

    def here(self) -> str | None:
        """The folder of it in the hub's cache; None where there is none."""
        return next((str(place) for place in _snapshots(self.source)), None)


PIPELINES = (
    Pipeline(
        "stable-diffusion-1.5",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "CreativeML OpenRAIL-M",
        "Stable Diffusion 1.5: U-Net, noise prediction, 512 pixels",
    ),
    Pipeline(
        "stable-diffusion-2.1",
        "stabilityai/stable-diffusion-2-1",
        "CreativeML OpenRAIL++-M",
        "Stable Diffusion 2.1: U-Net, v-prediction, 768 pixels",
    ),
    Pipeline(
        "pixart-alpha",
        "PixArt-alpha/PixArt-XL-2-512x512",
        "see its model card",
        "PixArt-alpha: transformer, noise prediction, 512 pixels",
    ),
    Pipeline(
        "stable-diffusion-3",
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "Stability AI Community Licence",
        "Stable Diffusion 3 medium: transformer, rectified flow, 1024 pixels",
        gated=True,
    ),
)
BY_NAME = {each.name: each for each in PIPELINES}
_BY_SOURCE = {each.source: each for each in PIPELINES}


def known(ref: str) -> Pipeline | None:
    """The row of `PIPELINES` that a name or a hub id stands for."""
    return BY_NAME.get(ref) or _BY_SOURCE.get(ref.removeprefix(HUB))


def is_text(ref: str) -> bool:
    """Whether `ref` names a text-to-image model. Looks at names and heads of files; fetches nothing."""
    if ref.startswith(HUB) or known(ref) is not None or (Path(ref).expanduser() / INDEX).is_file():
        return True
    return "pipeline" in _header(ref) or (hub.is_id(ref) and bool(_snapshots(ref)))


def base(ref: str) -> tuple[str, Path | None]:
    """The pipeline that `ref` stands for, and the file with a network of its own where gentk made one from it."""
    header = {} if known(ref) or ref.startswith(HUB) else _header(ref)
    return (str(header["pipeline"]), store.model_path(ref)) if "pipeline" in header else (ref, None)


def kin(ref: str) -> str | None:
    """The name of `PIPELINES` whose recipes fit `ref`: the model itself, or one of its family; None where unknown."""
    if not is_text(ref):
        return None
    ref = base(ref)[0]
    if row := known(ref):
        return row.name
    try:
        place = folder(ref, offline=True)
        family = family_of(place)
        scheduler = read_json(place / "scheduler" / "scheduler_config.json")
    except GentkError:
        return None
    if family == "unet":
        v = scheduler.get("prediction_type") == "v_prediction"
        return "stable-diffusion-2.1" if v else "stable-diffusion-1.5"
    return {"pixart": "pixart-alpha", "sd3": "stable-diffusion-3"}[family]


def folder(ref: str, *, offline: bool = False) -> Path:
    """The folder of the pipeline `ref`, from the hub's cache or, unless offline, downloaded to it.

    Raises MissingAsset, with the command that brings it, where it is not here and cannot be had.
    """
    place = Path(ref).expanduser()
    if (place / INDEX).is_file():
        return place
    row, source = known(ref), ref.removeprefix(HUB)
    source = row.source if row else source
    if not hub.is_id(source):
        raise MissingAsset(
            f"{ref}: no folder with {INDEX}",
            hint=f"a folder as diffusers' save_pretrained writes it, hf:OWNER/NAME or one of {', '.join(BY_NAME)}",
        )
    try:
        return hub.folder(source, offline=offline, files=_FILES, needed=INDEX)
    except MissingAsset as error:
        what = f"{row.note}, {row.licence}" if row else "a text-to-image model"
        first = f"accept its licence at https://huggingface.co/{source}, `hf auth login`, then "
        files = " ".join(f"--include '{each}'" for each in _FILES)
        raise MissingAsset(
            f"`{ref}` ({what}) is not here: {str(error).partition(';')[0]}",
            hint=f"{first if row and row.gated else ''}`hf download {source} {files}`; "
            "or copy its folder here and name that",
        ) from error


def family_of(place: Path) -> Family:
    """Which kind of pipeline a folder holds. Raises GentkError for one that gentk has no adapter for."""
    name = str(read_json(place / INDEX).get("_class_name"))
    if name not in FAMILIES:
        raise GentkError(f"{place}: a {name}", hint=f"gentk has {', '.join(FAMILIES)}")
    return FAMILIES[name]


def read_json(place: Path) -> dict[str, Any]:
    """A JSON object of a folder. Raises MissingAsset where there is no such file, GentkError for anything else."""
    try:
        value = json.loads(place.read_text("utf-8"))
    except FileNotFoundError:
        raise MissingAsset(f"{place}: no such file", hint="the folder is not whole: fetch or copy it again") from None
    except (OSError, ValueError) as error:
        raise GentkError(f"{place}: cannot be read as JSON: {error}", hint="fetch it again") from error
    if not isinstance(value, dict):
        raise GentkError(f"{place}: not a JSON object", hint="fetch it again")
    return value


def _header(ref: str) -> dict[str, Any]:
    try:
        return stamp.read_header(store.model_path(ref))
    except (MissingAsset, RecipeError, GentkError):
        return {}


def _snapshots(source: str) -> list[Path]:
    """The folders that the hub's cache holds of a hub id."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    place = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    found = (place / f"models--{source.replace('/', '--')}" / "snapshots").glob(f"*/{INDEX}")
    return sorted(index.parent for index in found)
