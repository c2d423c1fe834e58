"""Networks of implicit samplers: the sampler, one call from noise to a draw, and the score of what it draws.

Both work in coordinates y in which the target is roughly N(0, I), x = middle + root y. At the start the sampler is the
identity and the score that of N(0, 1 + sigma^2), which is then right: nothing has to be learned before the first step.
Activations are smooth, as the Fisher loss differentiates the score's divergence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from gentk.errors import GentkError, RecipeError
from gentk.nets.weights import load_into
from gentk.recipe.networks import Plain
from gentk.recipe.stamp import read_header
from gentk.recipe.store import model_path


class Sampler(nn.Module):
    """`sampler(z)`: (B, D) standard normal -> draws x (B, D); `coordinates(z)` -> y = z + net(z) (B, D).

    Buffers: `middle` (D,), `root` (D,) for a scale of each coordinate or (D, D) for a whitening map.
    """

    middle: Tensor
    root: Tensor

    def __init__(self, section: Plain, *, dim: int, middle: Tensor | None = None, root: Tensor | None = None) -> None:
        super().__init__()
        self.net = _plain(section, dim)
        self.register_buffer("middle", torch.zeros(dim) if middle is None else middle.float())
        self.register_buffer("root", torch.ones(dim) if root is None else root.float())

    @property
    def dim(self) -> int:
        """D."""
        return len(self.middle)

    def coordinates(self, z: Tensor) -> Tensor:
        """y (B, D)."""
        out: Tensor = z + self.net(z)
        return out

    def place(self, y: Tensor) -> Tensor:
        """x = middle + root y, in the dtype of y."""
        root = self.root.to(y.dtype)
        return self.middle.to(y.dtype) + (y * root if root.dim() == 1 else y @ root.T)

    def forward(self, z: Tensor) -> Tensor:
        """x (B, D)."""
        return self.place(self.coordinates(z))


class Score(nn.Module):
    """`score(y)`: (B, D) -> (B, D), -y / (1 + sigma^2) + net(y); with a lead, 1 - c of the first term and c lead(y).

    A lead is a field that the draws' score may come near to, as the target's does once the sampler is right: c, one
    number learned with the rest from 0, takes as much of it as fits, and the network is left with the difference.
    Buffers are a checkpoint's part of the training, not of the network. `held`: how many steps the sampler was made to
    wait for this network, and whether the last one was among them. `cut`: the sum of the shares of its forces that were
    cut, and of how many steps.
    """

    held: Tensor
    cut: Tensor

    def __init__(
        self, section: Plain, *, dim: int, sigma: float, lead: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.net = _plain(section, dim)
        self.precision = 1 / (1 + sigma * sigma)
        self.lead = lead
        if lead is not None:
            self.share = nn.Parameter(torch.zeros(1))
        self.register_buffer("held", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("cut", torch.zeros(2, dtype=torch.float64))

    def forward(self, y: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        out: Tensor = self.net(y) - self.precision * y
        return out if self.lead is None else out + self.share * (self.lead(y) + self.precision * y)


def _plain(section: Plain, dim: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(dim, section.width)]
    for _ in range(section.depth - 1):
        layers += [nn.SiLU(), nn.Linear(section.width, section.width)]
    last = nn.Linear(section.width, dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, nn.SiLU(), last)


@dataclass(frozen=True)
class Loaded:
    """A trained sampler in eval mode, and its header: `net`, `data` (name, shape), `target` (the recipe's section)."""

    name: str
    net: Sampler
    header: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one draw."""
        return tuple(self.header["data"]["shape"])


def load(ref: str, where: torch.device | str = "cpu") -> Loaded:
    """The sampler that `ref` (name, run folder or file) stands for.

    Raises MissingAsset or RecipeError where there is none, GentkError where the file is damaged.
    """
    path = model_path(ref)
    header = read_header(path)
    if header["kind"] != "sampler":
        raise RecipeError(f"`{ref}` is a {header['kind']}, here a sampler is needed", hint="gentk train implicit-kl")
    try:
        section = Plain.model_validate_json(json.dumps(header["net"]))
    except ValidationError as e:
        raise GentkError(f"{path}: header: net: not understood", hint="upgrade gentk, or train it again") from e
    dim = math.prod(header["data"]["shape"])
    root = torch.ones(dim, dim) if header["whitened"] else torch.ones(dim)
    net = Sampler(section, dim=dim, root=root)
    load_into(net, path)
    return Loaded(ref, net.to(where).eval().requires_grad_(False), header)
