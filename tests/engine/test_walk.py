"""The short walk gives what torch's own gives, also after parameters were exchanged, and holds on to nothing."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from gentk.engine import ema, walk


def net() -> nn.Module:
    shared = nn.Linear(3, 3)
    tied = nn.Linear(3, 3)
    tied.weight = shared.weight
    return nn.Sequential(nn.Linear(3, 3, bias=False), shared, nn.Sequential(shared, nn.BatchNorm1d(3)), tied,
                         nn.LayerNorm(3, elementwise_affine=False), spectral_norm(nn.Linear(3, 3)))  # fmt: skip


def same(one: nn.Module) -> bool:
    pairs: tuple[tuple[Any, Any], ...] = (
        (walk.modules, one.modules),
        (walk.parameters, one.parameters),
        (walk.buffers, one.buffers),
    )
    return all([id(x) for x in ours(one)] == [id(x) for x in theirs()] for ours, theirs in pairs)


def test_it_is_torchs_walk() -> None:
    one = net()
    assert len(walk.parameters(one)) == 8
    assert same(one)
    one[0].weight = nn.Parameter(torch.zeros(3, 3))  # type: ignore[index]
    one[2][1].running_mean = torch.ones(3)  # type: ignore[index]
    assert same(one)
    assert same(nn.Linear(2, 2))


def test_a_network_that_is_done_with_goes() -> None:
    one = net()
    walk.modules(one)
    gone = weakref.ref(one)
    del one
    gc.collect()
    assert gone() is None


def test_a_weight_that_two_modules_share_is_averaged_once() -> None:
    average, one = net(), net()
    before = [p.clone() for p in average.parameters()]
    ema.update(average, one, 0.75)
    for was, now, goal in zip(before, average.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * was + 0.25 * goal)
