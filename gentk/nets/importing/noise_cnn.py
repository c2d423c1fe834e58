"""The MNIST noise predictor of Yichizz/hot_vs_cold_diffusion, as safetensors: shapes say its architecture.

Trained on images in [-0.5, 0.5] at t = 1 to 1000 of 1001 betas linear from 1e-4 to 0.02, labelled t / 1000.
"""

from __future__ import annotations

from pathlib import Path

import safetensors
from torch import Tensor

from gentk.errors import GentkError, MissingAsset
from gentk.nets.importing import Imported, empty
from gentk.nets.importing.settings import Settings
from gentk.nets.weights import faults
from gentk.recipe import schema


def read(path: Path, settings: Settings) -> Imported:
    """The network of the file. Raises MissingAsset where there is none, GentkError for another one's tensors."""
    state, told = load(path)
    convolutions = [v for k, v in state.items() if k.endswith(".net.0.weight") and v.ndim == 4]
    norm, hidden = state.get("blocks.0.net.1.weight"), state.get("time_embed.0.weight")
    if norm is None or norm.ndim != 3 or hidden is None or not convolutions:
        raise GentkError(f"{path}: not the noise predictor: no `blocks.0.net` or no `time_embed`")
    section = settings.section(
        schema.NoiseCnn,
        "net",
        name="noise-cnn",
        widths=[len(v) for v in convolutions],
        embedding=len(hidden),
    )
    shape = convolutions[0].shape[1], *norm.shape[1:]
    if found := faults(empty(section, shape, 0).state_dict(), state):
        raise GentkError(f"{path}: not the network that its shapes say: {found}")
    return Imported(
        net=section,
        shape=shape,
        classes=0,
        process=settings.section(schema.Discrete, "process", name="discrete", steps=1001, data_scale=0.5),
        predicts="eps",
        inputs=schema.Inputs(scale="process", label="time", factor=0.001, offset=-0.001),
        state=state,
        facts={"format": "noise-cnn", **{k: v for k, v in told.items() if k not in ("licence", "license")}},
        licence=told.get("licence", told.get("license", "")),
    )


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises MissingAsset without one, GentkError for a damaged one."""
    if not path.is_file():
        raise MissingAsset(f"{path}: no such file", hint="give the path of a file, a URL, a hub id or a known name")
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise GentkError(f"{path}: not a safetensors file, or damaged: {error}", hint="fetch it again") from error
