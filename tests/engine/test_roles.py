"""Roles by the short way are those by torch's own, also where modules have a say or parameters were exchanged."""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from gentk.engine import roles


def net() -> nn.Module:
    shared = nn.Linear(3, 3)
    return nn.Sequential(nn.Linear(3, 3, bias=False), nn.Dropout(0.5), shared, nn.Sequential(shared, nn.BatchNorm1d(3)),
                         spectral_norm(nn.Linear(3, 3)))  # fmt: skip


def state(module: nn.Module) -> list[bool]:
    return [m.training for m in module.modules()] + [p.requires_grad for p in module.parameters()]


def test_both_ways_agree() -> None:
    one, other = net(), net()
    for moves in (False, True, True, False):
        roles.give(one, moves)
        other.requires_grad_(moves).train(moves)
        assert state(one) == state(other)
        assert set(state(one)) == {moves}


def test_what_others_have_changed_is_put_right() -> None:
    one = net()
    roles.give(one, True)
    one[1].eval()  # type: ignore[index]
    one[2].requires_grad_(False)  # type: ignore[index]
    one[0].weight = nn.Parameter(torch.zeros(3, 3), requires_grad=False)  # type: ignore[index]
    roles.give(one, True)
    assert set(state(one)) == {True}


def test_a_module_with_a_mode_of_its_own_keeps_it() -> None:
    class Always(nn.Dropout):
        def train(self, mode: bool = True) -> Always:
            return super().train(False)

    one = nn.Sequential(nn.Linear(2, 2), Always(0.5))
    roles.give(one, True)
    assert (one[0].training, one[1].training) == (True, False)


def test_it_is_the_shorter_way() -> None:
    one = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.SiLU()) for _ in range(40)))

    def seconds(way: object) -> float:
        begun = time.process_time()
        for k in range(40):
            way(bool(k % 2))  # type: ignore[operator]
        return time.process_time() - begun

    roles.give(one, True)
    ours = min(seconds(lambda moves: roles.give(one, moves)) for _ in range(3))
    theirs = min(seconds(lambda moves: one.requires_grad_(moves).train(moves)) for _ in range(3))
    assert ours < 0.5 * theirs
