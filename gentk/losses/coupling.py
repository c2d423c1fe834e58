"""Which noise a training sample is paired with: the coupling of a mini-batch.

Flow matching learns from pairs (x0, x1) of data and noise. Any joint law with the two as its marginals has the same
target at the ends; pairs that lie close make paths that cross less, and so a velocity that needs fewer steps.
"""

from __future__ import annotations

from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Coupling = Literal["independent", "ot", "ot-per-class"]


def paired(name: Coupling, x0: Tensor, x1: Tensor, labels: Tensor | None = None) -> Tensor:
    """The rows of x1 (B, ...) in the order in which they go with the rows of x0 (B, ...): a permutation of x1.

    independent     as they come
    ot              the assignment of least sum |x0_i - x1_j|^2: the exact optimal transport between the two halves of
                    the batch (Tong et al. 2024, arXiv:2302.00482)
    ot-per-class    the same among the samples of each class

    The noise moves and the data stay, so that no label can be left behind. With `ot` the noise of a pair depends on its
    data and, through them, on the label: a class-conditional model then learns to start each class from noise that is
    not quite standard normal, which a sampler that draws it so does not know. `ot-per-class` is free of that: which
    noise a class gets is settled before the data are looked at. Needs B^2 numbers and O(B^3) time, on the CPU.
    """
    if name == "independent":
        return x1
    cost = torch.cdist(x0.flatten(1).double(), x1.flatten(1).double()).square()
    if name == "ot-per-class" and labels is not None:
        other = labels[:, None] != labels[None, :]
        cost = cost + other * (1 + cost.max() * len(x0))  # dearer than any assignment within the classes
    _, order = linear_sum_assignment(cost.cpu().numpy())  # rows come back sorted: entry i is the partner of x0_i
    return x1[torch.from_numpy(order).to(x1.device)]
