"""`reuse`: one call of the generator per step, whose samples also teach the fake score."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gentk.engine.method import Phase
from gentk.losses import matching
from gentk.tasks.distill._one_step import OneStep
from tests.tasks.test_one_step import fit, loop_state, same
from tests.tasks.toys import build

REUSE: dict[str, Any] = {"name": "sim", "fake_steps": 2, "reuse": True}


def watched(monkeypatch: pytest.MonkeyPatch, method: OneStep) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """The samples of each call of the generator, and (x0, t) of each update of the fake score."""
    made: list[Tensor] = []
    learned: list[tuple[Tensor, Tensor]] = []
    of, edm = method.core.of, matching.edm

    def spied(z: Tensor, cond: Any) -> Tensor:
        made.append(of(z, cond))
        return made[-1]

    def seen(fake: Any, process: Any, x0: Tensor, t: Tensor, *rest: Any) -> Tensor:
        learned.append((x0, t))
        return edm(fake, process, x0, t, *rest)

    monkeypatch.setattr(method.core, "of", spied)
    monkeypatch.setattr(matching, "edm", seen)
    return made, learned


def test_the_fake_score_learns_from_the_samples_of_the_generators_update(
    monkeypatch: pytest.MonkeyPatch, teacher: str, tmp_path: Path
) -> None:
    method = build(REUSE, teacher=teacher)
    made, learned = watched(monkeypatch, method)
    order: list[str] = []
    phases = method.phases

    def noted(step: int) -> Iterator[Phase]:
        for phase in phases(step):
            order.append(phase.name)
            yield phase

    monkeypatch.setattr(method, "phases", noted)
    fit(tmp_path, method, steps=1)
    assert order == ["generator", "fake", "fake-2"]
    assert len(made) == 1
    assert len(learned) == 2
    for x0, _ in learned:
        assert torch.equal(x0, made[0])
        assert not x0.requires_grad  # data: nothing flows back
    assert not torch.equal(learned[0][1], learned[1][1])  # times, and noise, of its own


def test_each_micro_batch_finds_its_own_samples(monkeypatch: pytest.MonkeyPatch, teacher: str, tmp_path: Path) -> None:
    method = build(REUSE, teacher=teacher)
    made, learned = watched(monkeypatch, method)
    fit(tmp_path, method, steps=2, accumulate=2)
    assert len(made) == 4
    assert not torch.equal(made[0], made[1])
    for (x0, _), i in zip(learned, (0, 1, 0, 1, 2, 3, 2, 3), strict=True):
        assert torch.equal(x0, made[i])


def test_without_it_every_update_has_samples_of_its_own(
    monkeypatch: pytest.MonkeyPatch, teacher: str, tmp_path: Path
) -> None:
    method = build(REUSE | {"reuse": False}, teacher=teacher)
    made, learned = watched(monkeypatch, method)
    fit(tmp_path, method, steps=1)
    assert len(made) == 3
    assert not torch.equal(learned[0][0], learned[1][0])
    assert all(not torch.equal(x0, made[2]) for x0, _ in learned)


def test_a_stopped_run_goes_on_bit_for_bit(teacher: str, tmp_path: Path) -> None:
    """Nothing is carried from step to step."""
    whole = fit(tmp_path / "whole", build(REUSE, teacher=teacher), steps=4, checkpoint_every=2)
    fit(tmp_path / "cut", build(REUSE, teacher=teacher), steps=4, checkpoint_every=2)
    (tmp_path / "cut" / "checkpoints" / "00000004" / "meta.json").unlink()
    resumed = fit(tmp_path / "cut", build(REUSE, teacher=teacher), steps=4, checkpoint_every=2)
    for a, b in zip(loop_state(whole), loop_state(resumed), strict=True):
        assert same(a, b)
