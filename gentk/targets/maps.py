"""Maps of the whole line onto the support of a parameter, so that a sampler never leaves it.

    real      theta = y
    positive  theta = e^y
    unit      theta = 1 / (1 + e^-y)

A density of theta is one of y when the logarithm of the Jacobian is added: log q(theta(y)) + log |d theta / d y|.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from gentk.recipe.targets import Support


class Map:
    """theta(y) and its log-Jacobian, coordinate by coordinate: (N, D) -> (N, D) and (N,)."""

    def __init__(self, supports: Sequence[Support]) -> None:
        self.positive = torch.tensor([s == "positive" for s in supports])
        self.unit = torch.tensor([s == "unit" for s in supports])

    def __call__(self, y: Tensor) -> Tensor:
        """theta(y)."""
        positive, unit = self.positive.to(y.device), self.unit.to(y.device)
        # where() differentiates both branches: the one not taken must stay finite
        theta = torch.where(positive, torch.where(positive, y, 0).exp(), y)
        return torch.where(unit, torch.sigmoid(y), theta)

    def log_jacobian(self, y: Tensor) -> Tensor:
        """log |d theta / d y| (N,)."""
        positive, unit = self.positive.to(y), self.unit.to(y)
        return (positive * y - unit * (F.softplus(y) + F.softplus(-y))).sum(-1)
