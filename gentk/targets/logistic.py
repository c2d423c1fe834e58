"""Bayesian logistic regression: the posterior of the weights w (D,) under N(0, prior^2 I).

log q(w) = sum_i log sigmoid(s_i w . x_i) - |w|^2 / (2 prior^2), s_i = +-1 the label, x_i a row with a 1 in front where
there is an intercept. From B of the n rows the sum is estimated by n / B times theirs, the prior counted once.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from gentk.targets.tables import Table


class Logistic:
    """The posterior of a table: `log_prob(w)` (N, D) -> (N,), up to a constant, in the dtype of w."""

    def __init__(self, table: Table, *, prior: float = 1.0, intercept: bool = True) -> None:
        x = torch.from_numpy(table.x)
        if intercept:
            x = torch.cat([x.new_ones(len(x), 1), x], 1)
        sign = 2 * torch.from_numpy(table.y) - 1
        self.rows = sign[:, None] * x  # the label enters as a sign of the row
        self.prior = prior
        self._cast: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    @property
    def dim(self) -> int:
        """The number of weights."""
        return self.rows.shape[1]

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def _rows(self, like: Tensor) -> Tensor:
        key = (like.dtype, like.device)
        if key not in self._cast:
            self._cast[key] = self.rows.to(like)
        return self._cast[key]

    def log_prob(self, w: Tensor) -> Tensor:
        """From all rows."""
        return F.logsigmoid(w @ self._rows(w).T).sum(1) - w.square().sum(1) / (2 * self.prior**2)

    def estimate(self, w: Tensor, size: int, gen: Generator) -> Tensor:
        """From `size` random rows, with replacement: its mean over `gen` is `log_prob`, and so is its score's."""
        chosen = torch.randint(len(self), (size,), generator=gen, device=gen.device)
        part = F.logsigmoid(w @ self._rows(w)[chosen].T).sum(1)
        return len(self) / size * part - w.square().sum(1) / (2 * self.prior**2)
