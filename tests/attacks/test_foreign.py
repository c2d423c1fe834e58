"""Attacks of other packages around our victims, by stand-ins that do the harm the real ones do; the real ones where
they are installed are in test_libraries.py."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gentk.attacks import autoattack as module
from gentk.attacks import foreign
from gentk.attacks.autoattack import answers_differ, autoattack
from gentk.attacks.ball import Ball
from gentk.attacks.foreign import AsModule, fingerprint, undisturbed
from gentk.attacks.suite import Plan, absent, attack, suite
from gentk.attacks.victim import Grad, Tape, Undefended
from gentk.errors import MissingAsset, RecipeError, RunFailed
from tests.attacks.victims import Linear, Noisy, Rounding, digits, trained

IDS = torch.arange(397)


def test_each_call_is_another_draw_whatever_the_library_seeds() -> None:
    """Trap 7: libraries seed torch before every attack; a defence on the global stream would replay its noise."""
    _, _, x, _ = digits()
    model = AsModule(Noisy(trained(), 10, 0.3), seed=0)
    answers = []
    for _ in range(3):
        torch.manual_seed(0)
        answers.append(model(x[:4]))
    assert not torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[1], answers[2])
    again = AsModule(Noisy(trained(), 10, 0.3), seed=0)
    assert torch.equal(again(x[:4]), answers[0])


def test_libraries_get_the_type_that_they_gave() -> None:
    """Trap 18: a defence that answers in float64 stops FAB, and AutoAttack with it."""

    class Double(Undefended):
        def logits(self, x: Tensor, tape: Tape, grad: Grad = "full") -> Tensor:
            return super().logits(x, tape, grad).double()

    _, _, x, _ = digits()
    assert AsModule(Double(trained(), 10), 0)(x[:2]).dtype == torch.float32


def test_no_train_mode_reaches_the_victim() -> None:
    """Trap 9: what torchattacks does to a wrapper that is in train mode."""
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
    model, before = AsModule(Undefended(net, 10), 0), fingerprint(net)
    assert not model.training
    assert next(model.parameters()).device.type == "cpu"  # where libraries look for the device
    model.train()
    model(torch.rand(4, 1, 8, 8))
    assert fingerprint(net) == before


def test_the_callers_randomness_trace_and_mode_come_back() -> None:
    """Traps 6 and 7."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)

    def tracer(*_: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        with undisturbed() as said:
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            sys.settrace(None)
            torch.set_grad_enabled(False)
            print("a library's progress")
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert torch.is_grad_enabled()
    assert said.getvalue() == "a library's progress\n"
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_fingerprint_sees_weights_statistics_and_modes() -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()

    whole = fingerprint(make())
    assert fingerprint(make()) == whole
    assert fingerprint(Undefended(make(), 10)) == fingerprint(Undefended(make(), 10))
    changes: list[Callable[[nn.Module], Any]] = [
        lambda n: n[2].weight.data.add_(1e-7),
        lambda n: n[0].running_mean.add_(1e-7),
        lambda n: n[0].train(),
    ]
    for change in changes:
        net = make()
        change(net)
        assert fingerprint(net) != whole
        victim = Undefended(make(), 10)
        before = fingerprint(victim)
        change(victim.net)
        assert fingerprint(victim) != before


# --- stand-ins for the libraries --------------------------------------------------------------------------------------


class Half:
    """An attack of torchattacks' form that adds half of eps; `seen` is what it was given."""

    seen: dict[str, Any]

    def __init__(self, model: nn.Module, eps: float = 0.3, steps: int = 10, seed: int | None = None) -> None:
        Half.seen = {"eps": eps, "steps": steps, "seed": seed}
        self.model, self.eps = model, eps

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        torch.manual_seed(0)
        self.model(images)
        return (images + self.eps / 2).clamp(0, 1)


class Unbounded(Half):
    """One that knows no eps, as CW and DeepFool."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return 1 - images


class Spoiling(Half):
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        self.model.victim.net.train()
        return images


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    made = types.ModuleType("torchattacks")
    made.__version__ = "9.9"  # type: ignore[attr-defined]
    for name, value in {"PGD": Half, "CW": Unbounded, "Spoil": Spoiling, "Attack": Half, "tool": len}.items():
        setattr(made, name, value)
    monkeypatch.setitem(sys.modules, "torchattacks", made)
    return made


def test_a_named_attack_gets_the_settings_that_it_knows(package: types.ModuleType) -> None:
    _, _, x, y = digits()
    victim, ball = Undefended(trained(), 10), Ball("linf", 0.1)
    found = attack("torchattacks:PGD", victim, x[:5], y[:5], IDS[:5], Plan(ball, 7, 0.02, seed=4))
    assert Half.seen == {"eps": 0.1, "steps": 7, "seed": 4}
    assert found.facts["library"] == "torchattacks 9.9"
    assert found.facts["brought_into_the_ball"] == 0
    torch.testing.assert_close(found.x, (x[:5] + 0.05).clamp(0, 1))


def test_what_knows_no_eps_is_brought_into_the_ball_and_said(package: types.ModuleType) -> None:
    _, _, x, y = digits()
    found = attack("torchattacks:CW", Undefended(trained(), 10), x[:5], y[:5], IDS[:5], Plan(Ball("l2", 0.5), 7, 0.02))
    assert found.facts["brought_into_the_ball"] == 5
    assert float(Ball("l2", 0.5).distance(found.x, x[:5]).max()) <= 0.5 + 1e-6


@pytest.mark.parametrize("name", ["PDG", "Attack", "tool", "__doc__"])
def test_unknown_names_are_told_the_known_ones(package: types.ModuleType, name: str) -> None:
    _, _, x, y = digits()
    with pytest.raises(RecipeError, match="unknown attack") as e:
        attack(
            f"torchattacks:{name}", Undefended(trained(), 10), x[:1], y[:1], IDS[:1], Plan(Ball("linf", 0.1), 1, 0.1)
        )
    assert e.value.hint == "CW, PGD, Spoil"
    with pytest.raises(RecipeError, match="unknown attack `nonsense`"):
        attack("nonsense", Undefended(trained(), 10), x[:1], y[:1], IDS[:1], Plan(Ball("linf", 0.1), 1, 0.1))


def test_a_norm_that_an_attack_does_not_know_is_refused(package: types.ModuleType) -> None:
    _, _, x, y = digits()
    with pytest.raises(RecipeError, match="no norm l2"):
        attack("torchattacks:PGD", Undefended(trained(), 10), x[:1], y[:1], IDS[:1], Plan(Ball("l2", 0.1), 1, 0.1))


def test_a_victim_that_changes_under_an_attack_is_a_failure(package: types.ModuleType) -> None:
    _, _, x, y = digits()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with pytest.raises(RunFailed, match="changed under it"):
        attack("torchattacks:Spoil", Undefended(net, 10), x[:1], y[:1], IDS[:1], Plan(Ball("linf", 0.1), 1, 0.1))


# --- AutoAttack -------------------------------------------------------------------------------------------------------


class Official:
    """AutoAttack of the official form: looks for dynamic defences, seeds, and returns images and a printed number."""

    def __init__(self, model: nn.Module, *, norm: str, eps: float, seed: int, version: str, device: Any) -> None:
        self.model, self.eps, self.version = model, eps, version
        self.apgd_targeted, self.fab = (
            types.SimpleNamespace(n_target_classes=9),
            types.SimpleNamespace(n_target_classes=9),
        )
        Official.last = self  # type: ignore[attr-defined]

    def run_standard_evaluation(self, x: Tensor, y: Tensor, *, batch_size: int) -> tuple[Tensor, Tensor]:
        from pyautoattack import checks  # type: ignore[import-not-found]

        checks.check_dynamic(self.model, x)
        torch.manual_seed(0)
        print("robust accuracy: 0.00%")
        return (x + self.eps).clamp(0, 1), y


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    def check_dynamic(*_: Any) -> None:
        raise AssertionError("the trace function would be gone now")

    made, checks = types.ModuleType("pyautoattack"), types.ModuleType("pyautoattack.checks")
    made.AutoAttack, made.checks = Official, checks  # type: ignore[attr-defined]
    checks.check_dynamic = check_dynamic  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "autoattack", None)
    monkeypatch.setitem(sys.modules, "pyautoattack", made)
    monkeypatch.setitem(sys.modules, "pyautoattack.checks", checks)
    return checks


def test_autoattack_takes_the_library_that_is_here_and_says_which(
    official: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, x, y = digits()
    state = torch.get_rng_state()
    before = official.check_dynamic
    moved, facts = autoattack(Undefended(trained(), 10), x[:5], y[:5], IDS[:5], Ball("linf", 0.1), seed=0)
    assert facts["library"].startswith("pyautoattack")
    assert facts["version"] == "standard"
    torch.testing.assert_close(moved, (x[:5] + 0.1).clamp(0, 1))
    assert official.check_dynamic is before
    assert torch.equal(torch.get_rng_state(), state)
    assert capsys.readouterr().out == ""


def test_standard_is_refused_where_answers_change() -> None:
    """Trap 5, by what the victim says and by what it does."""
    _, _, x, y = digits()
    victim = Noisy(trained(), 10, 0.3)
    with pytest.raises(RecipeError, match="`standard`") as e:
        autoattack(victim, x[:5], y[:5], IDS[:5], Ball("linf", 0.1), version="standard", seed=0)
    assert "version=rand" in e.value.hint

    class Silent(Noisy):
        random = False

    with pytest.raises(RecipeError, match="change from draw to draw"):
        autoattack(Silent(trained(), 10, 0.3), x[:5], y[:5], IDS[:5], Ball("linf", 0.1), version="standard", seed=0)
    assert answers_differ(victim, x[:5], IDS[:5], 0)
    assert not answers_differ(Undefended(trained(), 10), x[:5], IDS[:5], 0)


def test_rand_is_what_a_defence_with_noise_gets(official: types.ModuleType) -> None:
    _, _, x, y = digits()
    _, facts = autoattack(Noisy(trained(), 10, 0.3), x[:5], y[:5], IDS[:5], Ball("linf", 0.1), seed=0)
    assert (facts["version"], facts["steps"], facts["eot"]) == ("rand", 100, 20)


def test_few_classes(official: types.ModuleType) -> None:
    """Trap 17: targets are the other classes, and the targeted loss needs four logits."""
    x, y = torch.rand(5, 1, 4, 4), torch.zeros(5).long()
    autoattack(Undefended(Linear(torch.randn(4, 16)), 4), x, y, IDS[:5], Ball("linf", 0.1), seed=0)
    assert Official.last.apgd_targeted.n_target_classes == Official.last.fab.n_target_classes == 3  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="has 3 classes"):
        autoattack(Undefended(Linear(torch.randn(3, 16)), 3), x, y, IDS[:5], Ball("linf", 0.1), seed=0)


def test_without_a_library_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("autoattack", "pyautoattack", "torchattacks"):
        monkeypatch.setitem(sys.modules, name, None)
    _, _, x, y = digits()
    with pytest.raises(MissingAsset) as e:
        autoattack(Undefended(trained(), 10), x[:1], y[:1], IDS[:1], Ball("linf", 0.1), seed=0)
    assert "gentk[robust]" in e.value.hint
    assert "gentk[robust]" in absent("autoattack")
    assert absent("square") == ""
    with pytest.raises(MissingAsset, match="pyautoattack"):
        module._library("pyautoattack")
    with pytest.raises(MissingAsset, match="torchattacks"):
        foreign.torchattacks(
            Undefended(trained(), 10), x[:1], y[:1], "PGD", Ball("linf", 0.1), steps=1, step=0.1, eot=1, seed=0
        )


# --- the suite --------------------------------------------------------------------------------------------------------


def test_the_suite_knows_what_its_victim_has() -> None:
    assert suite(Undefended(trained(), 10)) == ("one-step", "pgd", "square", "autoattack")
    assert suite(Noisy(trained(), 10, 0.1)) == ("blind", "one-step", "pgd-eot", "frozen", "square", "autoattack")
    own = suite(Rounding(trained(), 10))
    assert {"blind", "bpda", "surrogate"} <= set(own)


@pytest.mark.parametrize(
    "name", ["none", "blind", "bpda", "pgd", "pgd-eot", "surrogate", "frozen", "square", "one-step"]
)
def test_every_attack_stays_in_the_ball_and_says_what_it_knew(name: str) -> None:
    _, _, x, y = digits()
    plan = Plan(Ball("linf", 0.1), 3, 0.05, eot=2, queries=5)
    found = attack(name, Rounding(trained(), 10), x[:6], y[:6], IDS[:6], plan)
    assert float((found.x - x[:6]).abs().max()) <= 0.1 + 1e-6
    knows = {"none": "none", "square": "blackbox", "pgd": "full", "pgd-eot": "full", "one-step": "full"}
    assert found.knowledge == knows.get(name, name)
    again = attack(name, Rounding(trained(), 10), x[:6], y[:6], IDS[:6], plan)
    assert torch.equal(again.x, found.x)
