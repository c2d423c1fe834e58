"""Energies by name, run or file: what chains, samplers and scores are given as `energy(x, t=None)` -> U (B,)."""

from __future__ import annotations

from pathlib import Path

import torch

from gentk.nets import published_energy
from gentk.processes.models import Model, load


def load_energy(ref: str, where: torch.device | str = "cpu") -> Model:
    """The energy that `ref` stands for: a run of `train-ebm`, a file of one, or a published energy by its name.

    The model's `net` maps samples (B, *shape), images in [-1, 1], to U (B,), low where the data are; its density is
    proportional to exp(-U). Raises as `models.load`, and MissingAsset where a published energy's file is absent.
    """
    if ref in published_energy.NAMES and not Path(ref).exists():
        net = published_energy.load(ref).to(where)
        header = {
            "kind": "energy",
            "data": {"name": "mnist", "shape": [1, 28, 28], "classes": 0},
            "levels": None,
            "published": ref,
        }
        return Model(ref, net, header)
    return load(ref, kinds=("energy",), where=torch.device(where))
