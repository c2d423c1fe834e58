"""Exact gradients through many steps in the memory of one: states are kept, each step is done again on the way back.

`torch.utils.checkpoint` would do as much, but replays torch's default generator and no other, and cannot tell when the
second pass was not the first: here noise has names (`Noise`), and the state that a step is redone to is compared with
the one that was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from gentk.errors import RunFailed

State = tuple[Tensor, ...]
Step = Callable[[int, State], State]
"""(number of the step, state) -> the next state; a function of the two alone."""

_ROUNDING = 1e-3  # of the state's largest value: kernels may differ with and without a graph, noise differs by 1


_WHOLE: ContextVar[bool] = ContextVar("whole graph", default=False)


@contextmanager
def whole_graph(wanted: bool = True) -> Iterator[None]:
    """Walks within it keep the graph of all their steps (`wanted`): the same gradient, faster where memory allows."""
    before = _WHOLE.set(wanted)
    try:
        yield
    finally:
        _WHOLE.reset(before)


def walk(step: Step, steps: int, state: State) -> State:
    """`state` after `steps` steps. Its gradient, of first order, costs one more pass and holds the graph of one step.

    A step may take gradients itself. Raises RunFailed on the way back where a step done again ends elsewhere. Within
    `whole_graph` nothing is done again, and the graph of all steps is held.
    """
    if _WHOLE.get() or not (torch.is_grad_enabled() and any(each.requires_grad for each in state)):
        for i in range(steps):
            state = step(i, state)
        return state
    out: State = _Walk.apply(step, steps, *state)  # type: ignore[no-untyped-call]
    return out


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, steps: int, *state: Tensor) -> State:
        kept = [*state]
        for i in range(steps):
            state = step(i, state)
            kept += state
        ctx.step, ctx.steps, ctx.width = step, steps, len(state)
        ctx.save_for_backward(*kept)
        return state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept, width = ctx.saved_tensors, ctx.width
        for i in reversed(range(ctx.steps)):
            before = tuple(s.detach().requires_grad_() for s in kept[i * width : (i + 1) * width])
            with torch.enable_grad():
                after = ctx.step(i, before)
            _same(i, after, kept[(i + 1) * width : (i + 2) * width])
            live = [(a, g) for a, g in zip(after, grads, strict=True) if a.requires_grad]
            found = torch.autograd.grad([a for a, _ in live], before, [g for _, g in live], allow_unused=True)
            grads = tuple(torch.zeros_like(b) if g is None else g for b, g in zip(before, found, strict=True))
        return (None, None, *grads)


def _same(i: int, again: State, kept: State) -> None:
    for a, b in zip(again, kept, strict=True):
        scale = float(b.abs().max()) if b.numel() else 0.0
        if b.numel() and not float((a.detach() - b).abs().max()) <= _ROUNDING * max(scale, 1e-12):
            raise RunFailed(
                f"step {i + 1} of a purifier came out otherwise when it was done again for its gradient",
                hint="the denoiser is in train mode, draws noise of its own, or has diverged",
            )
