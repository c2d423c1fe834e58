"""Success rules counted by hand, intervals against the printed table, McNemar against scipy, every red flag."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

from gentk.errors import RunFailed
from gentk.metrics.intervals import Interval, wilson
from gentk.metrics.robustness import accuracy, denominators, flags, half_width, mcnemar, minimum, scores


def at(value: float, n: int = 128) -> Interval:
    return wilson(value * n, n)


def test_rules_by_hand() -> None:
    predictions = torch.tensor(
        [
            [1, 1, 1, 1],  # always right
            [2, 1, 1, 1],  # wrong at first, right by vote
            [1, 1, 2, 2],  # a tie is no majority
            [1, 2, 2, 0],  # right at first only
            [0, 0, 0, 0],
        ]
    )
    found = scores(predictions, torch.ones(5).long(), worst_of=2)
    assert found["single"].tolist() == [1, 0, 1, 1, 0]
    assert found["average"].tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert found["worst-of-2"].tolist() == [1, 0, 1, 0, 0]
    assert found["vote-4"].tolist() == [1, 1, 0, 0, 0]


def test_rules_by_counting_every_case() -> None:
    """All 3^4 answers of four draws among three classes: the rules by their definitions in words."""
    cases = list(itertools.product(range(3), repeat=4))
    found = scores(torch.tensor(cases), torch.full((81,), 2), worst_of=3)
    for i, case in enumerate(cases):
        counts = [case.count(c) for c in range(3)]
        assert bool(found["single"][i]) == (case[0] == 2)
        assert float(found["average"][i]) == counts[2] / 4
        assert bool(found["worst-of-3"][i]) == (case[:3] == (2, 2, 2))
        assert bool(found["vote-4"][i]) == (counts[2] > max(counts[:2]))
    assert bool((found["worst-of-3"] <= found["single"]).all())


def test_a_class_that_never_answers_is_counted() -> None:
    found = scores(torch.zeros(2, 3).long(), torch.tensor([0, 9]), worst_of=1)
    assert found["vote-3"].tolist() == [1, 0]


def test_no_worst_of_more_than_there_are() -> None:
    with pytest.raises(RunFailed, match="worst-of-10"):
        scores(torch.zeros(2, 3).long(), torch.zeros(2).long())


def test_minimum_is_per_image_and_below_every_attack() -> None:
    a = {"single": torch.tensor([1.0, 0.0, 1.0]), "average": torch.tensor([0.9, 0.2, 0.8])}
    b = {"single": torch.tensor([0.0, 1.0, 1.0]), "average": torch.tensor([0.1, 0.6, 0.9])}
    found = minimum([a, b])
    assert found["single"].tolist() == [0, 0, 1]
    assert found["average"].tolist() == pytest.approx([0.1, 0.2, 0.8])
    assert float(found["single"].mean()) < min(float(a["single"].mean()), float(b["single"].mean()))


@pytest.mark.parametrize(
    ("n", "middle", "high"),
    [
        (64, (38, 62), (80, 95)),
        (256, (44, 56), (86, 93)),
        (512, (46, 54), (87, 92)),
        (1000, (47, 53), (88, 92)),
        (10_000, (49, 51), (89, 91)),
    ],
)
def test_the_printed_intervals(n: int, middle: tuple[int, int], high: tuple[int, int]) -> None:
    """robust_evaluation.md, section 3, in whole percent."""
    for share, expected in ((0.5, middle), (0.9, high)):
        found = accuracy(torch.full((n,), share, dtype=torch.float64))
        assert (100 * found.low, 100 * found.high) == pytest.approx(expected, abs=0.6)
    none = accuracy(torch.zeros(512))
    assert (none.low, none.value) == (0, 0)
    assert none.high == pytest.approx(0.0074, abs=2e-4)  # "less than 0.7 %" of none in 512


def test_draws_are_no_more_images() -> None:
    """Twenty draws of 50 images are worth 50 images: the interval of a share of draws is no narrower."""
    score = torch.full((50,), 0.5, dtype=torch.float64)
    assert accuracy(score) == wilson(25, 50)
    assert accuracy(score).high - accuracy(score).low > 4 * (wilson(500, 1000).high - wilson(500, 1000).low)


def test_both_denominators() -> None:
    """Trap 14: two images were wrong before the attack; the attack broke two of the other eight."""
    clean, attacked = torch.tensor([0.0, 0] + [1] * 8), torch.tensor([0.0, 0, 0, 0] + [1] * 6)
    found = denominators(attacked, clean)
    assert found.of_all.value == 0.6
    assert found.of_right is not None
    assert found.of_right == wilson(6, 8)
    assert denominators(attacked, torch.zeros(10)).of_right is None


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 0), (5, 15), (10, 10), (40, 22)])
def test_mcnemar_is_the_exact_test_of_the_pairs_that_differ(b: int, c: int) -> None:
    first = torch.tensor([1.0] * b + [0] * c + [1, 1, 0])
    second = torch.tensor([0.0] * b + [1] * c + [1, 1, 0])
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (b, c)
    expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert found.p == pytest.approx(expected, rel=1e-9)


def test_mcnemar_sees_what_unpaired_intervals_do_not() -> None:
    n = 200
    first = torch.cat([torch.ones(100), torch.zeros(100)])
    second = first.clone()
    second[:12] = 0
    assert mcnemar(first, second).p < 0.001
    a, b = accuracy(first), accuracy(second)
    assert b.high > a.low  # the intervals overlap
    assert len(first) == n


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [(torch.ones(3), torch.ones(4), "not paired"), (torch.full((3,), 0.5), torch.ones(3), "right or wrong")],
)
def test_mcnemar_refuses_what_is_no_pair_of_answers(a: Tensor, b: Tensor, words: str) -> None:
    with pytest.raises(RunFailed, match=words):
        mcnemar(a, b)


# --- red flags --------------------------------------------------------------------------------------------------------

# The averages of the table of robust_evaluation.md, section 4.
ONE_SHOT = {"blind": 0.546, "bpda": 0.539, "full": 0.399}
SCOREOPT_N = {"blind": 0.632, "bpda": 0.623, "full": 0.798}


def names(*args: object, **own: object) -> list[tuple[str, bool]]:
    return [(flag.name, flag.answered) for flag in flags(*args, **own)]  # type: ignore[arg-type]


def test_masking_is_flagged_and_answered_by_a_surrogate() -> None:
    assert names(ONE_SHOT) == []
    assert names(SCOREOPT_N) == [("masked", False)]
    assert names(SCOREOPT_N | {"surrogate": 0.421}) == [("masked", True)]
    assert names(SCOREOPT_N | {"surrogate": 0.75}) == [("masked", False)]
    assert names({"blind": 0.559, "bpda": 0.559, "full": 0.602}) == [("masked", False)]  # ScoreOpt-O
    assert names({"full": 0.9}) == []  # nothing to compare with
    words = flags(SCOREOPT_N | {"surrogate": 0.421})[0].words
    for part in ("gradient masking", "79.8 %", "bpda", "62.3 %", "42.1 %"):
        assert part in words


def test_a_surrogate_that_beats_the_full_gradient_is_masking_too() -> None:
    """ScoreOpt-O and the SDE of docs/attacks.md: no worse than BPDA, and yet a single call's gradient does more harm.

    Three points, or as much as the same images cannot tell apart.
    """
    scoreopt_o = {"blind": 0.546, "bpda": 0.531, "full": 0.543, "surrogate": 0.400}
    assert names(scoreopt_o, doubt=0.06) == [("masked", True)]
    for part in ("54.3 %", "40.0 %", "surrogate"):
        assert part in flags(scoreopt_o, doubt=0.06)[0].words
    sde = {"blind": 0.542, "bpda": 0.524, "full": 0.430, "surrogate": 0.397}
    assert names(sde, doubt=0.04) == []
    assert names(sde, doubt=0.0) == [("masked", True)]
    assert names(sde | {"surrogate": 0.401}, doubt=0.0) == []


def test_the_half_width_of_a_paired_difference() -> None:
    """0.5, -0.5, ... of 100 images: sd 0.5025, so 1.96 times 0.05025; of scores that differ by a constant none."""
    first, second = torch.tensor([1.0, 0.5] * 50), torch.tensor([0.5, 1.0] * 50)
    assert half_width(first, second) == pytest.approx(1.96 * 0.5 * (100 / 99) ** 0.5 / 10)
    assert half_width(first, first - 0.25) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("full", "flagged"), [(0.629, False), (0.631, True)])
def test_masking_begins_three_points_above(full: float, flagged: bool) -> None:
    assert bool(names({"blind": 0.7, "bpda": 0.6, "full": full})) == flagged


def test_a_black_box_that_beats_the_gradients() -> None:
    assert names(ONE_SHOT | {"square": 0.45}) == []
    assert names(ONE_SHOT | {"square": 0.30}) == [("square", False)]
    assert names({"square": 0.30}) == []
    assert names(ONE_SHOT | {"surrogate": 0.28, "square": 0.30}) == [("masked", True)]  # the best gradient is as good


def test_one_step_that_beats_many() -> None:
    assert names(ONE_SHOT, one_step=0.77) == []
    assert names(ONE_SHOT, one_step=0.30) == [("one-step", False)]


def test_curves_over_eps() -> None:
    """The one-shot curve of the notes is clean; one that rises or never gets to zero is not."""
    eps = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    good = list(zip(eps, map(at, (0.888, 0.784, 0.416, 0.097, 0.001, 0.0)), strict=True))
    assert names({}, curve=good) == []
    assert names({}, curve=good[::-1]) == []  # in any order
    assert names({}, curve=[*good[:-1], (1.0, at(0.2))]) == [("not-monotone", False), ("unbounded", False)]
    noise = [(0.1, at(0.50)), (0.2, at(0.52))]  # within what 128 images can say
    assert names({}, curve=noise) == []
    assert names({}, curve=[(0.5, at(0.3)), (1.0, at(0.1))]) == [("unbounded", False)]
    assert names({}, curve=[(0.5, at(0.3))]) == []


def test_an_attack_that_helps() -> None:
    assert names({"full": 0.97}, clean=0.9) == [("above-clean", False)]
    assert names({"full": 0.5}, clean=0.9) == []
