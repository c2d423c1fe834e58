"""Model folders in the layout of the Hugging Face hub, on disk or by hub id."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gentk.errors import GentkError, MissingAsset
from gentk.recipe import download, extras, weights

_WEIGHTS = ("*.json", "*.txt", "*.safetensors")


def is_id(ref: Path | str) -> bool:
    """Whether `ref` is a hub id, OWNER/NAME, and not the path of something here."""
    return isinstance(ref, str) and ref.count("/") == 1 and ref[0] not in "./~" and not Path(ref).exists()


def folder(
    ref: Path | str,
    *,
    offline: bool,
    files: Sequence[str] = _WEIGHTS,
    needed: str | None = "config.json",
    remedy: str = "give --weights FOLDER",
) -> Path:
    """The folder `ref`, or that of the hub id `ref` in the hub's cache, downloaded unless `offline`.

    `files` are the patterns to download, `needed` a file without which the folder is of no use, `remedy` what to do
    with a folder that was brought by hand.
    Raises MissingAsset where there is no such folder, or it lacks `needed`.
    """
    if not is_id(ref):
        place = Path(ref).expanduser()
        if not place.is_dir():
            raise MissingAsset(f"{ref}: no such folder", hint="give a folder with config.json, or a hub id OWNER/NAME")
        return _holding(place, needed)
    snapshot_download = extras.load("huggingface_hub", "t2i").snapshot_download
    offline = offline or weights.forbidden() or not _in_reach()
    try:
        return _holding(Path(snapshot_download(ref, allow_patterns=list(files), local_files_only=offline)), needed)
    except (OSError, ValueError) as error:  # the hub's errors are both: no network, no such id, no such file
        why = "offline" if offline else str(error).splitlines()[0]
        raise MissingAsset(
            f"{ref}: not in the cache of huggingface_hub ({why}); expected {', '.join(files)} of"
            f" https://huggingface.co/{ref}; size and hash are the hub's to check",
            hint=f"with a network: `hf download {ref}`; or copy its files to a folder and {remedy}",
        ) from error


def transformers() -> Any:
    """The package, which draws no progress bars of its own. Raises MissingAsset as `extras.load`."""
    package = extras.load("transformers", "t2i")
    package.utils.logging.disable_progress_bar()
    return package


def pretrained(model: str, place: Path) -> Any:
    """transformers' class `model` with the weights in the folder `place`, in evaluation mode.

    Raises GentkError for a folder of another model; transformers itself would fill what is absent with noise.
    """
    try:
        net, report = getattr(transformers(), model).from_pretrained(
            place, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise GentkError(f"{place}: no {model}: {str(error).splitlines()[0]}") from error
    if missing := sorted(report["missing_keys"]):
        raise GentkError(f"{place}: no {model}: missing {', '.join(missing[:4])}{', ...' if missing[4:] else ''}")
    return net.eval()


def _in_reach() -> bool:
    """Whether the hub answers soon; its own package tries for longer than a user waits."""
    try:
        download.reach(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    except download.Unreachable:
        return False
    return True


def _holding(place: Path, needed: str | None) -> Path:
    if needed and not (place / needed).is_file():
        raise MissingAsset(f"{place}: no {needed} in this folder", hint="it must hold a model as the hub stores it")
    return place
