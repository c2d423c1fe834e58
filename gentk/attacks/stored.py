"""Adversarial images on disk: float32, with ids and labels, and checked against the threat when they come back."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gentk.attacks.ball import Ball
from gentk.attacks.victim import in_range
from gentk.errors import RunFailed

_FORMAT = "gentk-adversarial"


@dataclass(frozen=True, eq=False)
class Stored:
    """Images x (B, C, H, W), what they were clean, ids and labels (B,) int64, the ball they are in, and facts."""

    x: Tensor
    clean: Tensor
    ids: Tensor
    y: Tensor
    ball: Ball
    facts: dict[str, Any]


def save(path: Path, stored: Stored) -> None:
    """Writes `stored`, whole or not at all. Raises RunFailed when images are outside of the ball or the disk refuses.

    Bytes would not do: rounding moves an image by up to 1/255 and so out of its ball.
    """
    in_range(stored.x)
    stored.ball.check(stored.x, stored.clean, stored.ids, str(path))
    tensors = {"x": stored.x, "clean": stored.clean, "ids": stored.ids.long(), "labels": stored.y.long()}
    header = {
        "format": _FORMAT,
        "norm": stored.ball.norm,
        "eps": repr(stored.ball.eps),
        "facts": json.dumps(stored.facts),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        temporary.write_bytes(safetensors.torch.save(content, header))
        temporary.replace(path)
    except OSError as e:
        with suppress(OSError):
            temporary.unlink()
        raise RunFailed(f"{path}: cannot be written: {e.strerror}", hint="free disk space") from e


def load(path: Path, clean: Tensor | None = None) -> Stored:
    """The images of `path`, inside of their ball around `clean` (the file's own clean images where it is None).

    Raises RunFailed for a file that cannot be read, is not of this kind, or holds an image outside of the threat that
    it states, a repeated id or a value out of range.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise RunFailed(f"{path}: holds no adversarial images", hint="written by gentk purify, in adversarial/")
            tensors = {k: file.get_tensor(k) for k in ("x", "clean", "ids", "labels")}
            ball = Ball(header["norm"], float(header["eps"]))
            facts = json.loads(header["facts"])
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as e:
        raise RunFailed(f"{path}: cannot be read: {e}", hint="make it again") from e
    ids: Tensor = tensors["ids"]
    if len(torch.unique(ids)) != len(ids):
        raise RunFailed(f"{path}: an image stands in it twice", hint="each image counts once: make the file again")
    there = tensors["clean"] if clean is None else clean.cpu()
    ball.check(tensors["x"], there, ids, str(path))
    return Stored(tensors["x"], there, ids, tensors["labels"], ball, facts)
