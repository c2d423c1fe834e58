"""The sections of a robustness evaluation: distances as people write them, and seeds that must differ."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from gentk.errors import RecipeError
from gentk.recipe.attacking import NAMES, AdversarialTraining, Attack, Scoring, Threat, disjoint_seeds


@pytest.mark.parametrize(
    ("written", "value"),
    [("8/255", 8 / 255), ("8 / 255", 8 / 255), (0.3, 0.3), ("0.3", 0.3), (1, 1.0), (0, 0.0), ("1e-2", 0.01)],
)
def test_eps_as_people_write_it(written: object, value: float) -> None:
    assert Threat(eps=written).eps == value  # type: ignore[arg-type]
    assert AdversarialTraining(eps=written).eps == value  # type: ignore[arg-type]


@pytest.mark.parametrize("section", [Threat, AdversarialTraining])
def test_bytes_are_refused_with_the_fraction_to_write(section: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="write 8/255 for 8 bytes"):
        section(eps=8)
    with pytest.raises(ValidationError, match="write 8/255"):
        section(norm="linf", eps="8")
    assert section(norm="l2", eps=1.5).eps == 1.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "written", ["8/0", "a/255", "", "8/255/2", None, True, [8, 255], -0.1, "-8/255", "nan", "inf", "1e999"]
)
def test_no_distance(written: object) -> None:
    for norm in ("linf", "l2"):
        with pytest.raises(ValidationError):
            Threat(norm=norm, eps=written)  # type: ignore[arg-type]


def test_a_recipe_that_was_written_out_reads_the_same() -> None:
    threat = Threat(eps="8/255")  # type: ignore[arg-type]
    assert Threat.model_validate_json(threat.model_dump_json()) == threat


@pytest.mark.parametrize("name", [*NAMES, "torchattacks:PGD"])
def test_names_of_attacks(name: str) -> None:
    assert Attack(name=name).name == name


@pytest.mark.parametrize("name", ["fgsm", "torchattacks", "torchattacks:", "PGD", ""])
def test_no_name_of_an_attack(name: str) -> None:
    with pytest.raises(ValidationError, match=r"pgd-eot.*torchattacks:NAME"):
        Attack(name=name)


@pytest.mark.parametrize(("steps", "size"), [(100, 0.05), (4, 0.05), (2, 0.1), (1, 0.2)])
def test_steps_reach_across_the_ball(steps: int, size: float) -> None:
    assert Attack(steps=steps).size(0.2) == pytest.approx(size)
    assert AdversarialTraining(eps=0.2, steps=steps).size() == pytest.approx(size)
    assert Attack(steps=steps, step="2/255").size(0.2) == 2 / 255  # type: ignore[arg-type]


def test_seeds_of_attack_and_evaluation_differ() -> None:
    disjoint_seeds(Attack().seed, Scoring().seed)
    with pytest.raises(RecipeError, match="both 7") as e:
        disjoint_seeds(7, 7)
    assert "frozen" in e.value.hint
