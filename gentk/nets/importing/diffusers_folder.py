"""Folders of diffusers with a UNet2DModel in DDPM's form, such as google/ddpm-cifar10-32; read without diffusers.

here               in the folder
architecture       config.json of `unet/` or of the folder itself
weights            diffusion_pytorch_model.safetensors beside it; pickled .bin files are not read
process, target    scheduler/scheduler_config.json, or scheduler_config.json of the folder itself
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.nets import keymaps
from gentk.nets.importing import Imported, empty
from gentk.nets.importing.noise_cnn import load
from gentk.nets.importing.settings import Settings
from gentk.recipe import schema

WEIGHTS = "diffusion_pytorch_model.safetensors"

# What a UNet2DModel must be to be DDPM's network, and what diffusers takes where a config says nothing.
_FORM: dict[str, tuple[Any, Any]] = {
    "center_input_sample": (False, False),
    "time_embedding_type": ("positional", "positional"),
    "time_embedding_dim": (None, None),
    "freq_shift": (1, 0),
    "flip_sin_to_cos": (False, True),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "mid_block_scale_factor": (1, 1),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "conv"),
    "upsample_type": ("conv", "conv"),
    "act_fn": ("silu", "silu"),
    "attn_norm_num_groups": (None, None),
    "norm_eps": (1e-6, 1e-5),
    "resnet_time_scale_shift": ("default", "default"),
    "add_attention": (True, True),
    "class_embed_type": (None, None),
    "num_class_embeds": (None, None),
}
_TARGETS: dict[str, schema.Predicts] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine"}


def read(path: Path, settings: Settings) -> Imported:
    """The model of the folder. Raises MissingAsset for absent files, GentkError for another architecture."""
    place = unet(path)
    config = _json(place / "config.json")
    section, shape = _section(place / "config.json", config)
    process, predicts = _process(path, settings)
    state, _ = load(place / WEIGHTS)
    return Imported(
        net=section,
        shape=shape,
        classes=0,
        process=process,
        predicts=predicts,
        inputs=schema.Inputs(scale="process", label="time", factor=1.0, offset=-1.0),
        state=keymaps.diffusers_ddpm(state, empty(section, shape, 0)),
        facts={"format": "diffusers", "class": config.get("_class_name"), "config": config},
    )


def unet(path: Path) -> Path:
    """The folder that holds the network: `unet` in a pipeline, else `path`. Raises MissingAsset without config.json."""
    if not path.is_dir():
        raise MissingAsset(f"{path}: no such folder", hint="give a folder of diffusers, or a hub id OWNER/NAME")
    place = path / "unet" if (path / "unet").is_dir() else path
    for name in ("config.json", WEIGHTS):
        if not (place / name).is_file():
            pickled = name == WEIGHTS and (place / "diffusion_pytorch_model.bin").is_file()
            raise MissingAsset(
                f"{place}: no {name} in this folder" + (", and .bin files are pickles" if pickled else ""),
                hint="it must hold a model as diffusers writes it: save_pretrained(FOLDER, safe_serialization=True)",
            )
    return place


def _section(place: Path, config: Mapping[str, Any]) -> tuple[schema.DdpmUNet, tuple[int, int, int]]:
    """Section and shape of a sample that a UNet2DModel's config describes."""
    if config.get("_class_name") != "UNet2DModel":
        raise GentkError(
            f"{place}: a {config.get('_class_name', 'model without _class_name')}",
            hint="of diffusers, UNet2DModel can be imported",
        )
    odd = [
        f"{key} is {config.get(key, usual)!r}, not {wanted!r}"
        for key, (wanted, usual) in _FORM.items()
        if config.get(key, usual) != wanted
    ]
    try:
        sides = [int(config["sample_size"]) >> level for level in range(len(config["block_out_channels"]))]
        widths = [int(width) for width in config["block_out_channels"]]
        down, up = list(config["down_block_types"]), list(config["up_block_types"])
        channels = int(config["in_channels"])
    except (KeyError, TypeError, ValueError) as error:
        raise GentkError(f"{place}: without a usable {error}", hint="it must be the config of a UNet2DModel") from error
    attends = [kind == "AttnDownBlock2D" for kind in down]
    odd += [f"{kind} in it" for kind in {*down} - {"DownBlock2D", "AttnDownBlock2D"}]
    if up != ["AttnUpBlock2D" if attending else "UpBlock2D" for attending in reversed(attends)]:
        odd.append(f"up_block_types {up} do not mirror the down blocks")
    if config.get("out_channels", 3) != channels or any(width % widths[0] for width in widths):
        odd.append(f"{channels} to {config.get('out_channels', 3)} channels through {widths}")
    if odd:
        raise GentkError(
            f"{place}: a UNet2DModel, but not of DDPM's form: {'; '.join(odd)}",
            hint="what can be imported has the form of google/ddpm-cifar10-32",
        )
    values = {
        "name": "ddpm-unet",
        "width": widths[0],
        "multipliers": [width // widths[0] for width in widths],
        "blocks": config.get("layers_per_block", 2),
        "attention": [side for side, attending in zip(sides, attends, strict=True) if attending],
        "head_width": config.get("attention_head_dim", 8),
        "groups": config.get("norm_num_groups", 32),
        "dropout": config.get("dropout", 0.0),
    }
    return schema.DdpmUNet.model_validate_json(json.dumps(values)), (channels, sides[0], sides[0])


def _process(path: Path, settings: Settings) -> tuple[schema.Process, schema.Predicts]:
    """Process and target of the scheduler's config, or of the settings where there is none."""
    places = [path / "scheduler" / "scheduler_config.json", path / "scheduler_config.json"]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        if not settings.given("process.steps"):
            raise RecipeError(
                f"{path}: no scheduler_config.json: nothing says how the data were noised",
                hint="--set process.steps=1000, and process.beta_start, process.beta_end where they differ from DDPM's",
            )
        return settings.section(schema.Discrete, "process", name="discrete"), "eps"
    config = _json(place)
    schedule, target = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    if schedule not in _SCHEDULES or config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        raise GentkError(
            f"{place}: betas by `{schedule}`{' of its own or rescaled' if schedule in _SCHEDULES else ''}",
            hint=f"gentk has {', '.join(_SCHEDULES)}",
        )
    if target not in _TARGETS:
        raise GentkError(f"{place}: prediction_type `{target}`", hint=f"gentk has {', '.join(_TARGETS)}")
    process = settings.section(
        schema.Discrete,
        "process",
        name="discrete",
        schedule=_SCHEDULES[schedule],
        beta_start=config.get("beta_start", 1e-4),
        beta_end=config.get("beta_end", 0.02),
        steps=config.get("num_train_timesteps", config.get("timesteps", 1000)),  # `timesteps` before diffusers 0.1
    )
    return process, _TARGETS[target]


def _json(place: Path) -> dict[str, Any]:
    try:
        value = json.loads(place.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise GentkError(f"{place}: cannot be read as JSON: {error}", hint="fetch it again") from error
    if not isinstance(value, dict):
        raise GentkError(f"{place}: not a JSON object", hint="fetch it again")
    return value
