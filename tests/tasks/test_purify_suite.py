"""What `gentk purify --attack suite` does with its dearest attack, and gradients without checkpoints."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gentk.attacks import suite
from gentk.recipe import load
from gentk.tasks.purify._attacking import _joined
from gentk.tasks.purify._bench import build
from tests.tasks.test_purify import FEW, adversarial, result
from tests.tasks.test_sample_evaluate import done, refused

CPU = torch.device("cpu")
PP = ("--set", "method.steps=2")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], str]]:
    """Ids and gradient of each call of AutoAttack, whose library is stood in for by the plan's PGD."""
    calls: list[tuple[list[int], str]] = []
    attack = suite.attack

    def one(name: str, victim: Any, x: Any, y: Any, ids: Any, plan: Any) -> Any:
        if name != "autoattack":
            return attack(name, victim, x, y, ids, plan)
        calls.append((ids.tolist(), plan.grad))
        found = attack("pgd-eot", victim, x, y, ids, plan)
        return replace(found, name=name, facts={"library": "a stand-in", "steps": plan.steps, "calls": len(ids)})

    monkeypatch.setattr(suite, "absent", lambda name: "")
    monkeypatch.setattr(suite, "attack", one)
    return calls


def test_autoattack_leaves_out_what_is_broken_on_every_draw(asked: list[tuple[list[int], str]]) -> None:
    """No rule counts such an image any more: it keeps the images that broke it, and every minimum stays the least."""
    words = ("purify", "one-shot", *FEW, "--eps", 0.3, "--attack")
    said = done(*words, "suite", "--out", "run").stdout
    found = result("run")
    ids = found["threat"]["ids"]
    right = {int(row["index"]): row for row in csv.DictReader(Path("run/images.csv").read_text().splitlines())}
    before = [name for name in found["attacks"] if name != "autoattack"]
    broken = [i for i in ids if any(right[i][name] == "0" for name in before)]
    assert 0 < len(broken) < len(ids)  # or nothing is tested
    attacked = [i for call, _ in asked for i in call]
    assert sorted(attacked + broken) == sorted(ids)
    assert found["attacks"]["autoattack"]["left_as_broken"] == len(broken)
    assert found["attacks"]["autoattack"]["calls"] == len(attacked)
    assert all(right[i]["autoattack"] == "0" for i in broken)
    assert f"was run on {len(attacked)} of 12 images" in said
    assert "Autoattack is that of a stand-in: steps 3; its gradient is full." in said
    for rule in ("single", "average", "worst-of-4", "vote-4"):
        least = found["minimum"][rule][0]
        assert all(least <= row["accuracy"][rule][0] + 1e-12 for row in found["attacks"].values())
    asked.clear()
    done(*words, "autoattack", "--out", "named")  # by name it spares nobody
    assert sorted(i for call, _ in asked for i in call) == sorted(ids)


def test_autoattack_follows_the_surrogate_within_the_suite(asked: list[tuple[list[int], str]]) -> None:
    words = ("purify", "purify-pp", *FEW, *PP, "--attack")
    done(*words, "suite", "--out", "a")
    assert {grad for _, grad in asked} == {"surrogate"}
    assert result("a")["threat"]["knowledge"]["autoattack"] == "surrogate"
    for extra in (("suite", "--set", "attack.autoattack=full", "--out", "b"), ("autoattack", "--out", "c")):
        asked.clear()
        done(*words, *extra)
        assert {grad for _, grad in asked} == {"full"}
    asked.clear()
    done("purify", "one-shot", *FEW, "--out", "d")  # which has no surrogate
    assert {grad for _, grad in asked} == {"full"}


def test_batches_with_nobody_left_say_nothing_of_the_library() -> None:
    none = {"knowledge": "full", "seconds": 0.0, "facts": {"left_as_broken": 5}}
    some = {"knowledge": "full", "seconds": 2.0, "facts": {"library": "l 1", "calls": 7, "left_as_broken": 1}}
    more = {"knowledge": "full", "seconds": 3.0, "facts": {"library": "l 1", "calls": 8, "left_as_broken": 0}}
    joined = _joined([none, some, more])
    assert joined["facts"] == {"library": "l 1", "calls": 15, "left_as_broken": 6}
    assert joined["seconds"] == 5.0


def test_settings_may_be_chosen_on_other_images() -> None:
    """Trap 22: noise levels are chosen on the training split, whose images are none of those that are counted."""
    both = [
        build(load.load("purify/one-shot/digits", [f"split={split}", "scoring.images=300"]).recipe, CPU).x.flatten(1)
        for split in ("train", "test")
    ]
    assert len(torch.unique(torch.cat(both), dim=0)) == 600
    done("purify", "one-shot", *FEW, "--attack", "none", "--set", "split=train", "--out", "run")
    assert result("run")["threat"]["split"] == "train"


def test_a_band_that_crosses_zero_is_refused_before_anything_runs() -> None:
    """Trap 9 of ScoreOpt, at the recipe."""
    refused(2, "lower band", "purify", "scoreopt-o", "--set", "method.t0=0.1", "--dry-run")


def test_without_checkpoints_the_images_are_the_same() -> None:
    """The same attack to the bit, by half of the calls of the purifier's steps (tests/defences/test_gradients.py)."""
    words = ("purify", "purify-pp", *FEW, *PP, "--attack", "pgd-eot", "--out")
    done(*words, "a", "--set", "checkpoint=true")
    done(*words, "b", "--set", "checkpoint=false")
    assert torch.equal(adversarial("a", "pgd-eot"), adversarial("b", "pgd-eot"))
    recipe = load.load("purify/purify-pp/digits", ["scoring.images=2", "checkpoint=false"]).recipe
    assert not build(recipe, CPU).victim.checkpoint
