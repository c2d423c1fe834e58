"""The denoiser that a purifier calls: any process in noise levels of its own image space, never with a label."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.processes.denoiser import Denoiser, at_sigma
from gentk.processes.models import Model
from gentk.processes.process import Process, ratio

Prior = Callable[[Tensor, float | Tensor], Tensor]
"""(z + t eps (B, ...), t > 0, one or (B,)) -> E[z]."""


def of(denoiser: Denoiser) -> Prior:
    """A denoiser of any process as a function of z + t eps and t.

    A level that is a number is brought to the process's time once: a purifier comes back to the same few.
    """
    process, known = denoiser.process, dict[float, tuple[Tensor, float]]()

    def denoise(z: Tensor, t: float | Tensor) -> Tensor:
        if isinstance(t, Tensor):
            return at_sigma(denoiser, z, t)
        if t not in known:
            with torch.inference_mode(False):  # kept beyond the mode that it is first asked in
                time = process.t_of(torch.tensor(t, dtype=torch.float64))
                known[t] = time, float(process.alpha(time))
        time, alpha = known[t]
        out: Tensor = denoiser(z if alpha == 1 else alpha * z, time, None)
        return out

    return denoise


def unlabelled(model: Model) -> None:
    """Raises RecipeError for a class-conditional denoiser that never learned to do without a label."""
    if model.classes and model.header.get("label_dropout", 1.0) == 0:
        raise RecipeError(
            f"model: `{model.name}` has always seen its labels, and no purifier may know the true one",
            hint="train it with method.label_dropout above 0, or take an unconditional model",
        )


def within(process: Process, levels: dict[str, float]) -> None:
    """Raises RecipeError, naming the key, for a noise level outside of what the process's networks have learned."""
    ends = ratio(process, torch.tensor([process.t_min, process.t_max], dtype=torch.float64)).tolist()
    for key, level in levels.items():
        if not ends[0] * (1 - 1e-9) <= level <= ends[1] * (1 + 1e-9):
            raise RecipeError(
                f"{key}: noise level {level:g} is outside of the model's range, {ends[0]:.3g} to {ends[1]:.3g}",
                hint="levels are of z = 2 x - 1 + level eps, EDM's sigma",
            )


def facts(model: Model) -> dict[str, Any]:
    """What a result says of the model: name, process, and how it is asked."""
    return {"name": model.name, "process": model.header["process"]["name"], "label": "none", "range": [-1, 1]}
