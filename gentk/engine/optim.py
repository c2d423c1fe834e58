"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from gentk.recipe.schema import Optimiser


def build(section: Optimiser, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam or AdamW as the section says, in torch's fused form: one pass over the parameters."""
    cls = torch.optim.Adam if section.name == "adam" else torch.optim.AdamW
    return cls(
        parameters,
        lr=section.lr,
        betas=section.betas,
        eps=section.eps,
        weight_decay=section.weight_decay,
        fused=True,
    )


def learning_rate(section: Optimiser, step: int, steps: int) -> float:
    """The learning rate of step `step` of `steps`, from 0: linear warm-up, then decay to `floor` times the peak."""
    if step < section.warmup:
        return section.lr * (step + 1) / section.warmup
    if section.decay == "constant":
        return section.lr
    progress = (step - section.warmup) / max(1, steps - section.warmup)
    shape = 1.0 - progress if section.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return section.lr * (section.floor + (1.0 - section.floor) * shape)
