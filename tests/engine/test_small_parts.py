"""Randomness by key, the average, the schedules, devices, stop signals."""

from __future__ import annotations

import math
import os
import signal
from itertools import pairwise

import pytest
import torch
from torch import nn

from gentk.engine import draw, ema, optim, precision, rng
from gentk.engine.stop import listening
from gentk.errors import RecipeError, Stopped
from gentk.recipe.schema import Ema, Optimiser


def test_keys_depend_on_every_part_and_on_their_order() -> None:
    keys = {
        rng.key(0, 1, "a"),
        rng.key(1, 0, "a"),
        rng.key(0, 1, "b"),
        rng.key("0", 1, "a"),
        rng.key(0, 1),
        rng.key(0, 1, "a", 0),
    }
    assert len(keys) == 6
    assert rng.key(0, 1, "a") == rng.key(0, 1, "a")
    assert all(0 <= k < 2**63 for k in keys)


def test_noise_of_sample_k_does_not_depend_on_the_batch() -> None:
    whole = rng.noise(7, 0, 10, (3, 2))
    assert torch.equal(torch.cat([rng.noise(7, 0, 4, (3, 2)), rng.noise(7, 4, 6, (3, 2))]), whole)
    assert not torch.equal(rng.noise(8, 0, 10, (3, 2)), whole)
    assert whole.flatten().unique().numel() == whole.numel()  # no row repeats another


def test_indices_visit_every_item_once_per_epoch_whatever_the_chunks() -> None:
    sequence = rng.indices(0, 0, 30, 10)
    for epoch in range(3):
        assert sequence[10 * epoch : 10 * (epoch + 1)].sort().values.tolist() == list(range(10))
    assert not torch.equal(sequence[:10], sequence[10:20])
    chunks = [rng.indices(0, start, 7, 10) for start in (0, 7, 14, 21)]
    assert torch.equal(torch.cat(chunks)[:28], sequence[:28])


def test_labels_cycle_by_sample_index() -> None:
    assert draw.labels(3, 4, (0, 5, 9)).tolist() == [0, 5, 9, 0]  # type: ignore[union-attr]
    assert draw.labels(3, 4, ()) is None


def test_decay_of_the_average() -> None:
    assert ema.decay(Ema(half_life=100, ramp_up=None), 100, 10**9) == pytest.approx(0.5)
    assert ema.decay(Ema(half_life=1000, ramp_up=0.05), 10, 2000) == pytest.approx(0.5 ** (10 / 100))
    assert ema.decay(Ema(half_life=1000, ramp_up=0.05), 10, 10**6) == pytest.approx(0.5 ** (10 / 1000))


def test_average_is_the_closed_form_and_copies_buffers() -> None:
    net, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        net.weight.fill_(3.0)
        net.running_mean.fill_(5.0)  # type: ignore[union-attr]
    for _ in range(4):
        ema.update(average, net, 0.5)
    torch.testing.assert_close(average.weight, torch.full((2,), 3 - 2 * 0.5**4))
    torch.testing.assert_close(average.running_mean, net.running_mean)


@pytest.mark.parametrize(
    ("section", "step", "expected"),
    [
        ({"lr": 2.0}, 99, 2.0),
        ({"lr": 2.0, "warmup": 4}, 0, 0.5),
        ({"lr": 2.0, "warmup": 4}, 3, 2.0),
        ({"lr": 2.0, "decay": "linear"}, 25, 1.5),
        ({"lr": 2.0, "decay": "linear", "floor": 0.1}, 100, 0.2),
        ({"lr": 2.0, "decay": "cosine"}, 50, 1.0),
        ({"lr": 2.0, "decay": "cosine", "warmup": 20}, 60, 1.0),
        ({"lr": 2.0, "decay": "cosine", "floor": 0.5}, 100, 1.0),
    ],
)
def test_learning_rate(section: dict[str, float], step: int, expected: float) -> None:
    assert optim.learning_rate(Optimiser(**section), step, 100) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_optimisers_are_torchs(name: str) -> None:
    """Ten steps on a quadratic equal torch's unfused optimiser of that name."""
    ours, theirs = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    section = Optimiser(name=name, lr=0.1, betas=(0.5, 0.9), weight_decay=0.2, eps=1e-6)  # type: ignore[arg-type]
    a = optim.build(section, [ours])  # type: ignore[list-item]
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    b = cls([theirs], lr=0.1, betas=(0.5, 0.9), weight_decay=0.2, eps=1e-6, foreach=False)
    for _ in range(10):
        for x, opt in ((ours, a), (theirs, b)):
            opt.zero_grad()
            ((x - torch.tensor([0.0, 2.0, 5.0])) ** 2).sum().backward()  # type: ignore[no-untyped-call]
            opt.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_device() -> None:
    assert precision.device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        assert precision.device("auto") == torch.device("cpu")
        with pytest.raises(RecipeError, match="no CUDA device"):
            precision.device("cuda")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_signals_are_collected_and_handlers_come_back(name: str) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with listening() as stop:
        os.kill(os.getpid(), number)
        assert stop.signal == name
        with pytest.raises(Stopped, match=name):
            stop.stop()
    assert signal.getsignal(number) is before


def test_the_second_interrupt_stops_now() -> None:
    with listening() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_stop_while_finishing_is_at_once() -> None:
    with listening() as stop:
        stop.anywhere = True
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)


def test_schedules_are_monotone_after_warmup() -> None:
    section = Optimiser(lr=1.0, warmup=10, decay="cosine")
    rates = [optim.learning_rate(section, s, 100) for s in range(100)]
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert math.isclose(max(rates), 1.0)
