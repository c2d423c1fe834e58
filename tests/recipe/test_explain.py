"""What is said of a recipe: a dump that reads back equal, origins and meanings, differences, the digest."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gentk.recipe import explain, registry, yaml12
from gentk.recipe.fields import fields, leaves
from gentk.recipe.load import load, loads

Add = Callable[..., Path]


@pytest.mark.parametrize(
    "sets", [[], ["optim.fake.lr=1e-7", "about='no: [x] # y'", "measure.features=identity", "method.c=3"]]
)
def test_a_dump_loads_back_equal(sim: str, sets: list[str]) -> None:
    recipe = loads(sim, source="x", sets=sets).recipe
    again = loads(explain.dump(recipe), source="dump")
    assert again.recipe == recipe
    assert explain.dump(again.recipe) == explain.dump(recipe)
    assert "default" not in again.origins.values()  # a dump leaves nothing to the schema of the day


def test_full_shows_every_key_with_value_origin_and_meaning(add: Add) -> None:
    add()
    path = add("distill/sim/own", "base: edm-digits\nabout: x\nsize: gpu\nseed: 3\n")
    loaded = load(path, ["train.batch=64"], overrides={"teacher": "t"})
    text = explain.full(loaded)
    rows = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert rows["seed"].split("# ")[1] == "own.yaml:4; every random number of the run derives from it"
    assert rows["distance"].split("# ")[1].startswith("base edm-digits.yaml:12; d(")
    assert rows["batch"].startswith("  batch: 64 ")
    assert rows["batch"].split("# ")[1].startswith("--set; ")
    teacher = next(line for line in text.splitlines() if line.startswith("teacher:"))  # not guidance's
    assert teacher.split("# ")[1].startswith("--teacher; ")
    assert rows["half_life"].split("# ")[1].startswith("default; ")
    assert "Uniform on EDM's rho-warped grid" in text  # a variant's name is explained by the variant
    assert loads(text, source="full").recipe == loaded.recipe


def test_every_key_of_the_schema_is_listed_and_explained(sim: str) -> None:
    found = list(fields(loads(sim, source="x", sets=["measure.features=identity", "reference.name=digits"]).recipe))
    top = registry.recipe_schema("distill", "sim").model_fields
    assert [item.path[0] for item in found if len(item.path) == 1] == list(top)
    unexplained = [yaml12.dotted(item.path) for item in found if not item.description and item.path[0] != "expect"]
    assert unexplained in ([], ["task"])  # the task's own literal says it all


def test_diff_names_what_differs_and_nothing_else(sim: str) -> None:
    a = loads(sim, source="a").recipe
    b = loads(sim, source="b", sets=["train.steps=7", "optim.fake.betas=[0, 0.5]", "measure.features=identity"]).recipe
    found = {d.path: (d.a, d.b) for d in explain.diff(a, b)}
    assert found.pop("train.steps") == (100, 7)
    assert found.pop("optim.fake.betas") == ((0.0, 0.9), (0.0, 0.5))
    assert found.pop("measure") == (None, explain.ABSENT)
    assert found.pop("measure.features") == (explain.ABSENT, "identity")
    assert all(path.startswith("measure.") for path in found)
    assert explain.diff(a, a) == []


def test_diff_tells_absent_from_null_and_from_empty(sim: str) -> None:
    a = loads(sim, source="a").recipe
    b = loads(sim, source="b", sets=["expect={}"]).recipe
    paths = {d.path: d.b for d in explain.diff(a, b)}
    assert set(paths) == {f"expect.fd_student.{key}" for key in ("paper", "where", "ours", "note")}
    assert all(value is explain.ABSENT for value in paths.values())
    assert repr(explain.ABSENT) == "-"


def test_digest_is_of_what_is_computed(sim: str) -> None:
    def digest(*sets: str) -> str:
        return explain.digest(loads(sim, source="x", sets=sets).recipe)

    own = digest()
    assert len(own) == 8
    assert int(own, 16) >= 0
    claims = ["about=other", "default=false", "size=gpu", "expect={}", "needs.data=[x]", "paper=null"]
    assert digest(*claims) == own
    assert digest("train.batch=128") == own  # the default, written out
    assert len({own, digest("seed=1"), digest("teacher=t"), digest("train.steps=101"), digest("method.c=1")}) == 5


def test_leaves_hold_plain_values_only(sim: str) -> None:
    for leaf in leaves(loads(sim, source="x").recipe):
        assert isinstance(leaf.value, str | int | float | tuple | dict | None), leaf
