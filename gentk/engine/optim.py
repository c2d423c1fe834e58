"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from gentk.recipe.schema import Optimiser


def build(section: Optimiser, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam or AdamW as the section says, in torch's fused form: one pass over the parameters."""
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[section.name]
    settings = {"lr": section.lr, "betas": section.betas, "eps": section.eps, "weight_decay": section.weight_decay}
    return cls(parameters, fused=True, **settings)


def learning_rate(section: Optimiser, step: int, steps: int) -> float:
    """The learning rate of step `step` of `steps`, from 0: linear warm-up, then the decay down to `floor` of the peak."""
    if step < section.warmup:
        return section.lr * (step + 1) / section.warmup
    if section.decay == "constant":
        return section.lr
    progress = (step - section.warmup) / max(1, steps - section.warmup)
    shape = 1.0 - progress if section.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return section.lr * (section.floor + (1.0 - section.floor) * shape)
