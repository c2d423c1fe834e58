"""`train classifier` on attacked images: the loop's loss is that of the attack, in the data's units, and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gentk.attacks.ball import Ball
from gentk.attacks.training import Inner, madry, trades
from gentk.engine import loop, rng
from gentk.engine.method import Batch
from gentk.engine.stop import StopRequest
from gentk.recipe import registry
from gentk.recipe.schema import Ema
from gentk.tasks.train._classifying import Classifying, _Unit
from tests.engine.tiny import Folder
from tests.tasks.toys import CPU

N = 24


def build(method: dict[str, Any], **own: Any) -> Classifying:
    section = registry.recipe_schema("train", "classifier")(
        task="train",
        about="a test",
        size="smoke",
        data={"name": "digits"},
        net={"name": "small-cnn", "width": 8, "features": 32, "dropout": 0.1},
        method={"name": "classifier"} | method,
        optim={"lr": 3e-3},
        **{"train": {"steps": 4, "batch": N, "checkpoint_every": 2}} | own,
    )
    return Classifying(section, CPU)


def batch(method: Classifying) -> Batch:
    x, y = method.data.batch(torch.arange(N))
    return Batch(N, x, y)


@pytest.mark.parametrize("kind", ["madry", "trades"])
def test_the_loss_is_that_of_the_attack_in_units_of_images(kind: str) -> None:
    """eps 0.1 of [0, 1] is 0.2 of the [-1, 1] that the network has learned."""
    method = build({"adversarial": {"eps": 0.1, "steps": 3, "loss": kind, "beta": 2.0}, "label_smoothing": 0.1})
    given = batch(method)
    assert given.x is not None
    net = method.nets["classifier"].train()
    torch.manual_seed(0)
    loss, figures = method._loss(given, rng.generator(0))

    gen, seen = rng.generator(0), []
    torch.randn(given.x.shape, generator=gen)  # the augmentation's noise, here times 0
    unit, inner = (given.x + 1) / 2, Inner(Ball("linf", 0.1), 3, 1 / 30)
    hook = net.register_forward_pre_hook(lambda _, args: seen.append((net.training, args[0].detach())))
    torch.manual_seed(0)
    if kind == "madry":
        expected, logits = madry(_Unit(net), unit, given.y, inner, gen, smoothing=0.1)
    else:
        expected, logits = trades(_Unit(net), unit, given.y, inner, gen, beta=2.0, smoothing=0.1)
    hook.remove()
    torch.testing.assert_close(loss, expected)
    attacked = seen[-1][1]
    assert float((attacked - given.x).abs().max()) == pytest.approx(0.2, abs=1e-5)
    assert float(attacked.abs().max()) <= 1
    assert [training for training, _ in seen][-1]
    assert not seen[0][0]
    assert float(figures["accuracy_attacked"]) == float((logits.argmax(1) == given.y).float().mean())
    clean = F.cross_entropy(net(given.x), given.y, label_smoothing=0.1)
    assert float(loss.detach()) > float(clean.detach())


def fit(method: Classifying, folder: Path, steps: int) -> loop.State:
    run = Folder(folder)
    try:
        return loop.fit(
            method,
            train=method.recipe.train.model_copy(update={"steps": steps}),
            average=Ema(half_life=500),
            seed=0,
            where=CPU,
            run=run,  # type: ignore[arg-type]
            stop=StopRequest(),
        )
    finally:
        run.log.close()


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"adversarial": {"eps": 0.1, "steps": 2}, "shift": 1}
    whole = fit(build(settings), tmp_path / "whole", 4)
    fit(build(settings), tmp_path / "parts", 2)
    again = fit(build(settings), tmp_path / "parts", 4)
    for a, b in zip(whole.nets["classifier"].parameters(), again.nets["classifier"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_figures_say_what_the_attack_leaves(tmp_path: Path) -> None:
    """200 steps: less is right under attack than without, and more than the plainly trained one keeps."""
    left = {}
    for name, settings in (("plain", None), ("adversarial", {"eps": 0.1, "steps": 3})):
        own = build({"adversarial": settings}, train={"steps": 200, "batch": 50, "checkpoint_every": 200})
        state = fit(own, tmp_path / name, 200)
        if settings is None:
            assert "accuracy_pgd" not in own.finish(state.averaged).metrics
            own = build({"adversarial": {"eps": 0.1, "steps": 3}})
        figures = own.finish(state.averaged).metrics
        assert figures["accuracy_pgd"] < figures["accuracy"]
        left[name] = figures["accuracy_pgd"]
    assert left["adversarial"] > left["plain"] + 0.1


def test_eps_in_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="8/255"):
        build({"adversarial": {"eps": 8}})
    assert build({"adversarial": {"eps": "8/255"}}).config.adversarial.eps == 8 / 255
