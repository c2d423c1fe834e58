"""The tape: noise that belongs to the image, whatever the batch; and what no victim may be or be shown."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from gentk.attacks.victim import Tape, Undefended, in_range
from gentk.errors import RecipeError
from gentk.nets.image_classifier import ImageClassifier
from gentk.nets.small_classifiers import ReluMlp

IDS = torch.arange(4000)


def _mix(x: int) -> int:
    """splitmix64's finaliser in Python's integers, from the paper."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def _word(name: str | int) -> int:
    text = f"{type(name).__name__}:{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def test_the_hash_is_that_of_integers_of_any_size() -> None:
    golden = 0x9E3779B97F4A7C15
    tape = Tape.of(torch.tensor([0, 5, 2**40 + 1]), 7, 3)
    for row, id_ in enumerate((0, 5, 2**40 + 1)):
        key = _mix(_mix((id_ * golden) % 2**64 ^ _word(7)) ^ _word(3))
        assert int(tape.keys[row]) % 2**64 == key
        bits = [_mix((_mix(key ^ _word("z")) + (j + 1) * golden) % 2**64) for j in range(5)]
        assert tape[row : row + 1].uniform("z", (5,))[0].tolist() == [(b >> 40) * 2.0**-24 for b in bits]
        normal = tape[row : row + 1].normal("z", (10,))[0].double()
        for j, b in enumerate(bits):
            radius, angle = math.sqrt(-2 * math.log(((b >> 32) + 0.5) / 2**32)), 2 * math.pi * (b % 2**32) / 2**32
            assert float(normal[j]) == pytest.approx(radius * math.cos(angle), abs=1e-6)
            assert float(normal[j + 5]) == pytest.approx(radius * math.sin(angle), abs=1e-6)


@pytest.mark.parametrize("along", ["rows", "places", "draws", "seeds", "names"])
def test_normal_along_every_axis(along: str) -> None:
    n = 20_000
    one = torch.tensor([3])
    z: Tensor = {
        "rows": lambda: Tape.of(torch.arange(n), 0).normal("z", (1,)),
        "places": lambda: Tape.of(one, 0).normal("z", (n,)),
        "draws": lambda: torch.cat([Tape.of(one, 0, d).normal("z", (1,)) for d in range(4000)]),
        "seeds": lambda: torch.cat([Tape.of(one, s).normal("z", (1,)) for s in range(4000)]),
        "names": lambda: torch.cat([Tape.of(one, 0).normal(k, (1,)) for k in range(4000)]),
    }[along]().flatten()
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-3
    for lag in (1, 2, 7):  # 4 standard errors: the counters are neighbours, the numbers must not be
        assert abs(float((z[lag:] * z[:-lag]).mean())) < 4 / math.sqrt(len(z))
    assert float((z**4).mean()) == pytest.approx(3, abs=4 * math.sqrt(96 / len(z)))


def test_rows_do_not_know_their_batch() -> None:
    whole = Tape.of(IDS, 1, 2)
    some = torch.tensor([17, 3, 999])
    for draw in (Tape.normal, Tape.uniform):
        expected = draw(whole, "z", (3, 5))[some]
        assert torch.equal(draw(Tape.of(IDS[some], 1, 2), "z", (3, 5)), expected)
        assert torch.equal(draw(whole[some], "z", (3, 5)), expected)
        assert torch.equal(draw(Tape.cat([whole[some[:1]], whole[some[1:]]]), "z", (3, 5)), expected)


def test_a_copy_per_draw_equals_a_loop_over_draws() -> None:
    tapes = [Tape.of(IDS[:6], 0, k) for k in range(3)]
    together = Tape.cat(tapes).normal("z", (2, 2)).reshape(3, 6, 2, 2)
    for k, tape in enumerate(tapes):
        assert torch.equal(together[k], tape.normal("z", (2, 2)))
    assert not torch.equal(together[0], together[1])


def test_noise_has_a_name_not_a_position() -> None:
    tape = Tape.of(IDS[:4], 0)
    first = tape.normal("a", (8,))
    tape.normal("b", (100,))
    assert torch.equal(tape.normal("a", (8,)), first)
    assert torch.equal(tape.normal("a", (2, 4)), first.reshape(4, 2, 4))
    assert not torch.equal(tape.normal(1, (8,)), tape.normal("1", (8,)))


def test_the_same_numbers_in_float64() -> None:
    tape = Tape.of(IDS[:4], 0)
    like = torch.zeros(1, dtype=torch.float64)
    assert tape.normal("a", (9,), like=like).dtype == torch.float64
    assert torch.equal(tape.normal("a", (9,), like=like), tape.normal("a", (9,)).double())
    assert torch.equal(tape.uniform("a", (9,), like=like), tape.uniform("a", (9,)).double())


def test_uniform_is_even_and_below_one() -> None:
    u = Tape.of(IDS, 0).uniform("u", (5,))
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Tape.of(IDS, 0).normal("z", (4,))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_classifier_in_train_mode_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3)).eval()
    Undefended(net, 3)
    net[1].train()
    with pytest.raises(RecipeError, match="`1` is in train mode") as e:
        Undefended(net, 3)
    assert "eval()" in e.value.hint


def test_normalisation_is_inside_and_once() -> None:
    """Trap 11: budget and gradient are in units of [0, 1], and the answers are the classifier's own."""
    backbone = ReluMlp((12, 3)).eval()
    net = ImageClassifier(backbone, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.5)).eval()
    victim, x = Undefended(net, 3), torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    inner = x.clone().requires_grad_(True)
    logits = victim.logits(inner, victim.tape(IDS[:5], 0))
    scaled = (x - net.mean) / net.std
    torch.testing.assert_close(logits, backbone(scaled))
    (g,) = torch.autograd.grad(logits[:, 0].sum(), inner)
    torch.testing.assert_close(g, (backbone[0].weight[0].reshape(3, 2, 2) / net.std).expand_as(x))
    assert float((backbone((scaled - net.mean) / net.std) - logits).detach().abs().max()) > 0.1  # control: twice


@pytest.mark.parametrize(
    ("x", "words", "hint"),
    [
        (torch.full((1, 1, 2, 2), -1.0), "values from -1 to -1", r"(x + 1) / 2"),
        (torch.full((1, 1, 2, 2), 255.0), "values from 255", "(x + 1) / 2"),
        (torch.full((1, 1, 2, 2), math.nan), "values from nan", ""),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "uint8", "/ 255"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.float64), "float64", ""),
    ],
)
def test_images_out_of_range_are_refused(x: Tensor, words: str, hint: str) -> None:
    with pytest.raises(RecipeError, match=words) as e:
        in_range(x)
    assert hint in e.value.hint
