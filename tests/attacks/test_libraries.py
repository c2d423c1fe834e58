"""The same attacks by other packages on the same network, and what those do that must not reach a result.

    pip install -c constraints.txt torchattacks pyautoattack foolbox adversarial-robustness-toolbox

Without them these tests are skipped: they pull in 300 MB, and pins that hold other packages back.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gentk.attacks.autoattack import autoattack
from gentk.attacks.ball import Ball, Norm
from gentk.attacks.foreign import AsModule, fingerprint, torchattacks
from gentk.attacks.pgd import Pgd, pgd, predictions
from gentk.attacks.square import square
from gentk.attacks.suite import Plan, attack
from gentk.attacks.victim import Grad, Tape, Undefended
from gentk.errors import RecipeError
from tests.attacks.differences import larger
from tests.attacks.victims import Noisy, digits, trained

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs are not ours to mend
IDS = torch.arange(397)
N = 100
EPS = 0.2


def package(name: str) -> ModuleType:
    found: ModuleType = pytest.importorskip(name, reason=f"{name} is not installed", exc_type=ImportError)
    return found


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return trained(0.15)


def images(n: int = N) -> tuple[Tensor, Tensor]:
    _, _, x, y = digits()
    return x[:n], y[:n]


def right(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((net(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 1.0)])
def test_pgd_100_is_foolboxs(net: nn.Module, norm: Norm, eps: float) -> None:
    foolbox = package("foolbox")
    x, y = images()
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    torch.manual_seed(0)
    _, moved, _ = kind(rel_stepsize=0.1, steps=100)(foolbox.PyTorchModel(net, bounds=(0, 1)), x, y, epsilons=[eps])
    Ball(norm, eps).check(moved[0], x, IDS[:N], "foolbox")
    ours = pgd(Undefended(net, 10), x, y, IDS[:N], Pgd(Ball(norm, eps), 100, eps / 10), seed=0)
    assert right(net, ours, y) == pytest.approx(right(net, moved[0], y), abs=3)
    with torch.no_grad():  # control: without an attack it would not be that
        assert larger(net(x).argmax(1) == y, net(ours).argmax(1) == y)


def art_classifier(art: ModuleType, net: nn.Module) -> Any:
    return art.estimators.classification.PyTorchClassifier(
        model=net,
        loss=nn.CrossEntropyLoss(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )


@pytest.mark.parametrize(("norm", "eps", "theirs"), [("linf", EPS, math.inf), ("l2", 1.0, 2)])
def test_pgd_100_is_arts(net: nn.Module, norm: Norm, eps: float, theirs: float) -> None:
    art = package("art")
    package("art.estimators.classification")
    evasion = package("art.attacks.evasion")
    x, y = images()
    settings = {
        "norm": theirs,
        "eps": eps,
        "eps_step": eps / 10,
        "max_iter": 100,
        "num_random_init": 1,
        "verbose": False,
    }
    made = evasion.ProjectedGradientDescent(art_classifier(art, net), batch_size=N, **settings)
    moved = torch.tensor(made.generate(x.numpy(), y.numpy()))
    ours = pgd(Undefended(net, 10), x, y, IDS[:N], Pgd(Ball(norm, eps), 100, eps / 10), seed=0)
    assert right(net, ours, y) == pytest.approx(right(net, moved, y), abs=3)


def test_apgd_ce_of_three_packages(net: nn.Module) -> None:
    """100 steps: torchattacks' through our wrapper is the original's image for image, ART's as right on average.

    One run differs from the next by a point (39, 41 and 41 % here): the start is random.
    """
    art = package("art")
    package("art.estimators.classification")
    evasion, original = package("art.attacks.evasion"), package("pyautoattack")
    package("torchattacks")
    x, y = images()
    victim = Undefended(net, 10)
    settings = {"norm": math.inf, "eps": EPS, "max_iter": 100, "nb_random_init": 1, "verbose": False}
    made = evasion.AutoProjectedGradientDescent(
        art_classifier(art, net), loss_type="cross_entropy", eps_step=2 * EPS, batch_size=N, **settings
    )
    found, by_art = [], []
    for seed in range(3):
        moved, _ = torchattacks(victim, x, y, "APGD", Ball("linf", EPS), steps=100, step=0.1, eot=1, seed=seed)
        found.append(right(net, moved, y))
        np.random.seed(seed)
        by_art.append(right(net, torch.tensor(made.generate(x.numpy(), y.numpy())), y))
    run = original.AutoAttack(AsModule(victim, 0), attacks=["apgd-ce"], version="custom", eps=EPS, norm="Linf", seed=0)
    run.apgd.n_restarts = 1
    by_original, _ = run.run_standard_evaluation(x, y, batch_size=N)
    assert found[0] == right(net, by_original, y)
    assert sum(by_art) / 3 == pytest.approx(sum(found) / 3, abs=1)
    ours = pgd(victim, x, y, IDS[:N], Pgd(Ball("linf", EPS), 100, EPS / 10, restarts=3), seed=0)
    assert right(net, ours, y) == pytest.approx(sum(found) / 3, abs=3)


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.8)])
def test_the_hundred_step_suite_is_the_originals(net: nn.Module, norm: Norm, eps: float) -> None:
    """torchattacks' parts at 100 steps leave what the original leaves, its own class of the name no less."""
    package("pyautoattack")
    theirs = package("torchattacks")
    x, y = images(40)
    victim, ball = Undefended(net, 10), Ball(norm, eps)
    left = {}
    for name in ("pyautoattack", "torchattacks"):
        moved, facts = autoattack(victim, x, y, IDS[:40], ball, seed=0, library=name)  # type: ignore[arg-type]
        assert facts["library"].startswith(name)
        ball.check(moved, x, IDS[:40], name)
        left[name] = right(net, moved, y)
    assert left["torchattacks"] == pytest.approx(left["pyautoattack"], abs=2.5)  # an image
    own = theirs.AutoAttack(AsModule(victim, 0), norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, n_classes=10, seed=0)
    assert right(net, own(x, y), y) >= left["pyautoattack"]
    weaker = pgd(victim, x, y, IDS[:40], Pgd(ball, 10, eps / 4), seed=0)
    assert left["pyautoattack"] <= right(net, weaker, y)


def test_our_square_is_no_weaker_than_theirs(net: nn.Module) -> None:
    """At the same queries; theirs never puts a square at the last row or column, which is much of 8 x 8 pixels."""
    package("torchattacks")
    x, y = images()
    victim, ball = Undefended(net, 10), Ball("linf", EPS)
    ours = square(victim, x, y, IDS[:N], ball, queries=500, seed=0)
    theirs, _ = torchattacks(victim, x, y, "Square", ball, steps=1, step=0.1, eot=1, seed=0, queries=500)
    with torch.no_grad():
        by_us, by_them, before = (net(moved).argmax(1) == y for moved in (ours, theirs, x))
    assert not larger(by_us, by_them)
    assert larger(before, by_them)


# --- traps ------------------------------------------------------------------------------------------------------------


def test_the_printed_number_is_not_the_accuracy_of_the_images() -> None:
    """Trap 3: one lucky wrong draw marks an image as broken and ends the attack on it."""
    package("pyautoattack")
    x, y = images(20)
    victim = Noisy(trained(), 10, 0.25)
    found = attack("autoattack", victim, x, y, IDS[:20], Plan(Ball("linf", 0.05), 1, 0.1))
    assert found.facts["version"] == "rand"
    fresh = predictions(victim, found.x, IDS[:20], seed=10_000, draws=20)
    from pyautoattack import AutoAttack

    run = AutoAttack(AsModule(victim, 0), version="rand", eps=0.05, norm="Linf", seed=0)
    _, said = run.run_standard_evaluation(x, y, batch_size=20)
    share = (fresh == y[:, None]).double().mean(1)
    assert bool((share[said != y] > 0.5).any())  # counted as broken, right on most draws
    assert float(share.mean()) > float((said == y).double().mean())


def test_apgd_believes_the_last_of_its_draws() -> None:
    """Trap 4: of five draws that a gradient is averaged over, the fifth alone says whether an image is broken. A
    defence that is right on four of five, whatever the image, is then broken or not by where the fifth falls."""
    package("torchattacks")
    x, y = images(10)

    class Flicker(Undefended):
        random, asked, at = True, 0, 0

        def logits(self, x: Tensor, tape: Tape, grad: Grad = "full") -> Tensor:
            self.asked += 1
            out = 20 * nn.functional.one_hot(y, 10) + 1e-3 * super().logits(x, tape, grad)
            return -out if self.asked > 1 and self.asked % 5 == self.at else out  # right at first: else it is spared

    broken = []
    for at in range(5):
        victim = Flicker(trained(), 10)
        victim.at = at
        moved, _ = torchattacks(victim, x, y, "APGD", Ball("linf", 0.1), steps=3, step=0.1, eot=5, seed=0)
        broken.append(bool((moved != x).any()))
    assert True in broken
    assert False in broken


def test_checking_clean_images_again_and_again_breaks_them() -> None:
    """Trap 3 without any attack: each of 20 checks of a single draw only ever takes images away."""
    x, y = images()
    answers = predictions(Noisy(trained(), 10, 0.25), x, IDS[:N], seed=0, draws=20) == y[:, None]
    assert larger(answers[:, 0], answers.all(1))


def test_images_that_were_wrong_come_back_as_they_were(net: nn.Module) -> None:
    """Trap 14: APGD leaves them, PGD moves them; neither is a success of the attack."""
    package("torchattacks")
    x, y = images()
    victim, ball = Undefended(net, 10), Ball("linf", 0.05)
    wrong = net(x).argmax(1) != y
    assert int(wrong.sum()) > 0
    by_apgd, _ = torchattacks(victim, x, y, "APGD", ball, steps=10, step=0.1, eot=1, seed=0)
    by_pgd = pgd(victim, x, y, IDS[:N], Pgd(ball, 5, 0.02), seed=0)
    assert torch.equal(by_apgd[wrong], x[wrong])
    assert bool(((by_pgd - x).abs().amax((1, 2, 3)) > 0)[wrong].all())


def test_torchattacks_takes_any_range_and_we_do_not(net: nn.Module) -> None:
    """Trap 10."""
    theirs = package("torchattacks")
    x, y = images(10)
    theirs.PGD(net, eps=0.1)(2 * x - 1, y)
    with pytest.raises(RecipeError, match="values from -1"):
        torchattacks(Undefended(net, 10), 2 * x - 1, y, "PGD", Ball("linf", 0.1), steps=5, step=0.1, eot=1, seed=0)


def test_torchattacks_puts_a_wrapper_back_into_train_mode_but_not_ours() -> None:
    """Trap 9: and batch norm inside of it with it, whose statistics then move."""
    theirs = package("torchattacks")
    x, y = images(10)

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x)
            return out

    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()

    spoilt, kept = make(), make()
    before = fingerprint(spoilt)
    theirs.PGD(Wrapper(spoilt))(x, y)
    assert fingerprint(spoilt) != before
    attack("torchattacks:PGD", Undefended(kept, 10), x, y, IDS[:10], Plan(Ball("linf", 0.1), 5, 0.05))
    assert fingerprint(kept) == before


@pytest.mark.parametrize("name", ["PGD", "PGDL2", "APGD", "FAB", "Square", "EOTPGD", "CW", "DeepFool", "MIFGSM"])
def test_any_of_its_attacks_by_name(net: nn.Module, name: str) -> None:
    package("torchattacks")
    x, y = images(6)
    norm: Norm = "l2" if name in ("PGDL2", "CW", "DeepFool") else "linf"
    plan = Plan(Ball(norm, 0.8 if norm == "l2" else 0.2), 5, 0.05, eot=2, queries=20)
    state = torch.get_rng_state()
    found = attack(f"torchattacks:{name}", Undefended(net, 10), x, y, IDS[:6], plan)
    assert torch.equal(torch.get_rng_state(), state)
    assert right(net, found.x, y) <= right(net, x, y)
