"""Attacks of other packages: the victim as they want to see it, and the harm they would do kept from the caller."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import io
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gentk.attacks.ball import Ball
from gentk.attacks.pgd import knows, within_memory
from gentk.attacks.victim import Grad, Victim, in_range
from gentk.errors import RecipeError, did_you_mean
from gentk.recipe import extras


class AsModule(nn.Module):
    """`module(x)`: logits of one draw, by a stream of noise of its own that no library's seeding touches.

    The n-th call uses draw n at `seed`, whatever rows the library asks about: it does not say which images they are.
    """

    def __init__(self, victim: Victim, seed: int, grad: Grad = "full", device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.victim, self.seed, self.grad, self.calls = victim, seed, grad, 0
        # What libraries read the device from; the victim itself is no submodule, so that no train() reaches it.
        self.anchor = nn.Parameter(torch.zeros((), device=device), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Images x (B, C, H, W) in [0, 1] -> logits (B, classes) of the next draw."""
        tape = self.victim.tape(torch.arange(len(x)), self.seed, self.calls)
        self.calls += 1
        return self.victim.logits(x, tape, self.grad).to(x.dtype)


@contextlib.contextmanager
def undisturbed() -> Iterator[io.StringIO]:
    """Gives back torch's, numpy's and Python's random state, the trace function and the grad mode; what is printed in
    it goes to the stream that it yields."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    state, numbers, trace, grad = random.getstate(), np.random.get_state(), sys.gettrace(), torch.is_grad_enabled()
    said = io.StringIO()
    try:
        with torch.random.fork_rng(devices), contextlib.redirect_stdout(said):
            yield said
    finally:
        random.setstate(state)
        np.random.set_state(numbers)
        sys.settrace(trace)
        torch.set_grad_enabled(grad)


def fingerprint(victim: object) -> str:
    """A hash of every parameter, buffer and training flag of the networks that `victim` is or holds.

    An attack must leave it as it was: a library that puts batch norm into train mode moves its statistics unseen.
    """
    whole = hashlib.sha256()
    held = [victim, *vars(victim).values()] if hasattr(victim, "__dict__") else [victim]
    for net in held:
        if isinstance(net, nn.Module):
            for name, module in net.named_modules():
                whole.update(f"{name}:{module.training};".encode())
            for name, value in [*net.named_parameters(), *net.named_buffers()]:
                whole.update(
                    name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                )
    return whole.hexdigest()


def torchattacks(
    victim: Victim,
    x: Tensor,
    y: Tensor,
    name: str,
    ball: Ball,
    *,
    steps: int,
    step: float,
    eot: int,
    seed: int,
    queries: int = 5000,
    grad: Grad = "full",
) -> tuple[Tensor, dict[str, Any]]:
    """Images of the attack `torchattacks.NAME`, brought into the ball, and what was asked of it.

    Of the settings it gets those that it has a name for. Raises RecipeError for a name that is no such attack or a
    norm that it does not know, MissingAsset without the package.
    """
    in_range(x)
    knows(victim, y)
    package = extras.load("torchattacks", "robust")
    attack: Any = getattr(package, name, None)
    known = sorted(
        n for n in vars(package) if inspect.isclass(getattr(package, n)) and n not in ("Attack", "MultiAttack")
    )
    if name not in known:
        raise RecipeError(f"unknown attack `torchattacks:{name}`{did_you_mean(name, known)}", hint=", ".join(known))
    ours = {
        "eps": ball.eps,
        "alpha": step,
        "steps": steps,
        "eot_iter": eot if victim.random else 1,
        "n_queries": queries,
        "n_classes": victim.classes,
        "norm": {"linf": "Linf", "l2": "L2"}[ball.norm],
        "seed": seed,
        "resc_schedule": False,
    }
    takes = inspect.signature(attack).parameters
    if "norm" not in takes and (ball.norm == "l2") != name.endswith("L2") and "eps" in takes:
        raise RecipeError(
            f"torchattacks:{name} has no norm {ball.norm}",
            hint="PGD is for linf, PGDL2 for l2; APGD, FAB, Square for both",
        )
    asked = {k: v for k, v in ours.items() if k in takes}
    with undisturbed(), within_memory(len(x)):
        torch.manual_seed(seed)
        moved = attack(AsModule(victim, seed, grad, x.device), **asked)(x.clone(), y.clone()).detach()
    inside = ball.project(moved.to(x), x)
    cut = int((ball.distance(moved, x) > ball.eps + 1e-5).sum())
    return inside, {"library": f"torchattacks {package.__version__}", "settings": asked, "brought_into_the_ball": cut}
