"""Counting the bytes that a computation would take, without taking them: everything runs on torch's `meta` device.

Tensors there have shapes and no numbers. Under `Live()` every storage that an operation brings into being is counted
until nothing refers to it, autograd's saved tensors included: so forward, backward and recomputation are followed as
they are written. Not seen are an operation's own scratch space (cuDNN's, oneDNN's), the allocator's rounding and gaps,
and the context of a device. Attention is taken to be fused where queries, keys and values lie as the fused kernels want
them: it then keeps these, the answers and one number a row; elsewhere torch makes the matrix of all pairs, and so here.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# what autocast computes in bfloat16, and what it widens to float32 on CUDA (torch/aten/src/ATen/autocast_mode.h)
_LOW = {
    F.linear,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose2d,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.einsum,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.mm,
    Tensor.bmm,
    F.scaled_dot_product_attention,
}
_WIDE = {
    F.softmax,
    torch.softmax,
    Tensor.softmax,
    F.layer_norm,
    F.group_norm,
    torch.exp,
    Tensor.exp,
    torch.log,
    Tensor.log,
    torch.pow,
    Tensor.pow,
    Tensor.__pow__,
    Tensor.square,
    torch.sum,
    Tensor.sum,
    torch.rsqrt,
    F.mse_loss,
}

_exact = ContextVar("_exact", default=False)


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that are alive: `now`, and the largest so far, `peak`. `inputs`: bytes that were there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._own: dict[int, weakref.ref[Any]] = {}
        self._given: dict[int, int] = {}

    @property
    def inputs(self) -> Mapping[int, int]:
        """Storages that operations were given and none had made: their bytes, by address of the storage."""
        return self._given

    def forget(self) -> None:
        """Starts a new peak from what is alive now."""
        self.peak = self.now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation and counts what is new."""
        for each in pytree.tree_leaves((args, kwargs or {})):
            if _abstract(each):
                storage = each.untyped_storage()
                if storage._cdata not in self._own:
                    self._given[storage._cdata] = storage.nbytes()
        out = func(*args, **(kwargs or {}))
        for each in pytree.tree_leaves(out):
            if _abstract(each):
                self._count(each.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._own or key in self._given:
            return

        def gone(_ref: object) -> None:
            del self._own[key]
            self.now -= size

        self._own[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class Casts(TorchFunctionMode):
    """Fused attention, and the loop's autocast where `precision` is bf16, by the rules of "cuda" or of the "cpu".

    Forward and backward pass both run under it, for what is computed again in the latter; `passed` between them.
    """

    def __init__(self, precision: str, rules: str) -> None:
        super().__init__()
        self.low, self.wide = precision == "bf16", rules == "cuda"
        self._weights: dict[int, Tensor] | None = {}

    def passed(self) -> None:
        """The forward pass is over, and so is autocast, which gives up its copies of the weights."""
        self._weights = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function on operands of the data type that it would have."""
        named = kwargs or {}
        if func is torch.autograd.grad:
            with self, exact(off=True):  # what is computed again on the way is computed as in the loop
                return _gradients(*args, **named)
        low = self.low and not _exact.get()
        if low and func in _LOW:
            args, named = self._cast(args, torch.bfloat16), self._cast(named, torch.bfloat16)
        elif low and self.wide and func in _WIDE:
            args, named = self._cast(args, torch.float32), self._cast(named, torch.float32)
        if func is F.scaled_dot_product_attention and all(_abstract(x) and x.stride(-1) == 1 for x in args[:3]):
            return _Attention.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **named)

    def _cast(self, operands: Any, dtype: torch.dtype) -> Any:
        return pytree.tree_map(lambda x: self._as(x, dtype), operands)

    def _as(self, x: Any, dtype: torch.dtype) -> Any:
        if not _abstract(x) or not x.is_floating_point() or x.dtype == dtype or x.dtype == torch.float64:
            return x
        if self._weights is None or not (x.is_leaf and x.requires_grad):
            return x.to(dtype)
        if id(x) not in self._weights:  # autocast keeps one copy of each weight that learns
            self._weights[id(x)] = x.to(dtype)
        return self._weights[id(x)]


class _Attention(torch.autograd.Function):
    """What fused attention takes and keeps: no numbers, for abstract tensors alone."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The answer's shape: q (..., N, C), k (..., M, C), v (..., M, D) -> (..., N, D)."""
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *_grads: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the operands' shapes."""
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


@contextmanager
def exact(*, off: bool = False) -> Iterator[None]:
    """No casts in the block, as where a loss turns autocast off; `off`: casts again."""
    token = _exact.set(not off)
    try:
        yield
    finally:
        _exact.reset(token)


def _gradients(outputs: Iterable[Tensor], inputs: Iterable[Tensor], **named: Any) -> tuple[Tensor | None, ...]:
    """torch.autograd.grad as its own call hands it over, with the modes around it kept on, as in `backward`."""
    outputs, create = tuple(outputs), bool(named["create_graph"])
    keep = create if named["retain_graph"] is None else bool(named["retain_graph"])
    along = named["grad_outputs"]
    ones = tuple(torch.ones_like(x) for x in outputs) if along is None else tuple(along)
    found: tuple[Tensor | None, ...] = torch.autograd.graph._engine_run_backward(
        outputs, ones, keep, create, tuple(inputs), bool(named["allow_unused"]), accumulate_grad=False
    )
    return found


def backward(loss: Tensor) -> None:
    """loss.backward(), with the modes around it kept on: torch's own call hides the recomputation from them."""
    torch.autograd.graph._engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of tensors, each counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def _abstract(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == "meta"
