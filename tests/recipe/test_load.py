"""Loading: precedence and origins, and that every fault is found, placed and worded."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from gentk.errors import RecipeError
from gentk.recipe import registry
from gentk.recipe.load import Loaded, load, loads
from gentk.recipe.schema import LogNormal

Add = Callable[..., Path]


def faults(text: str, sets: tuple[str, ...] = (), **overrides: object) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        loads(text, source="sim.yaml", sets=sets, overrides=overrides)
    return str(caught.value).splitlines()


def line_of(text: str, part: str) -> int:
    return next(i for i, line in enumerate(text.splitlines(), 1) if part in line)


def edit(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


# -- values and origins


def test_values_origins_and_lines(add: Add, sim: str) -> None:
    loaded = load(add())
    recipe = loaded.recipe
    assert recipe.optim.generator.lr == 1e-4
    assert recipe.optim.fake.betas == (0.0, 0.9)
    assert recipe.method.noise_generator.t_max == 700
    assert recipe.method.noise_fake == LogNormal(name="lognormal")
    assert loaded.text == sim
    assert loaded.lines["train.steps"] == line_of(sim, "steps: 100")
    assert loaded.lines["optim.fake.betas[1]"] == line_of(sim, "betas")
    assert loaded.origins["train.steps"] == f"edm-digits.yaml:{line_of(sim, 'steps: 100')}"
    assert loaded.origins["expect.fd_student.ours"] == f"edm-digits.yaml:{line_of(sim, 'fd_student')}"
    assert loaded.origins["train.batch"] == loaded.origins["method.noise_fake.std"] == "default"


def test_the_recipe_is_frozen_and_of_the_tasks_own_type(add: Add) -> None:
    recipe = load(add()).recipe
    assert isinstance(recipe, BaseModel)
    assert type(recipe) is registry.recipe_schema("distill", "sim")
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.steps = 3


def test_options_beat_the_file_and_set_beats_options(add: Add) -> None:
    loaded = load(add(), ["train.steps=7", "seed=2"], overrides={"teacher": "runs/x", "seed": 1})
    assert (loaded.recipe.train.steps, loaded.recipe.teacher, loaded.recipe.seed) == (7, "runs/x", 2)
    assert [loaded.origins[k] for k in ("train.steps", "teacher", "seed")] == ["--set", "--teacher", "--set"]


@pytest.mark.parametrize(("key", "origin"), [("n", "-n"), ("batch", "--batch")])
def test_an_override_is_called_by_its_option(key: str, origin: str) -> None:
    text = edit(MINIMAL_DISTILL, "train: {steps: 5}", "train: {steps: 5}\nmeasure: {features: identity}")
    assert loads(text, source="x", overrides={f"measure.{key}": 3}).recipe.measure.model_dump()[key] == 3
    loaded = loads(MINIMAL_DISTILL, source="x", overrides={"seed": 3})
    assert loaded.origins["seed"] == "--seed"
    assert "unknown key" in faults(MINIMAL_DISTILL, **{key: 3})[0]
    assert faults(MINIMAL_DISTILL, **{key: 3})[0].startswith(f"{origin}: ")


MINIMAL_DISTILL = """\
task: distill
about: x
size: smoke
teacher: t
method: {name: sim}
optim: {generator: {lr: 1}, fake: {lr: 1}}
train: {steps: 5}
"""


def test_a_text_for_a_named_section_sets_its_name() -> None:
    loaded = loads(MINIMAL_DISTILL, source="x", overrides={"reference": "cifar10"})
    assert loaded.recipe.reference.name == "cifar10"
    assert loaded.origins["reference.name"] == "--reference"
    assert (
        loads(MINIMAL_DISTILL, source="x", sets=["method.noise_fake=uniform"]).recipe.method.noise_fake.name
        == "uniform"
    )
    assert faults(MINIMAL_DISTILL, ("train=long",)) == [
        "--set train: must be a section with keys of its own, not the text `long`"
    ]


def test_set_takes_yaml_values(add: Add) -> None:
    sets = ["optim.fake.betas=[0.5, 0.6]", "optim.fake.clip=null", "train.compile=true", "optim.fake.lr=1e-3"]
    sets += ["method.noise_fake={name: uniform}", "about=a = b", "expect.nfe.ours=1"]
    loaded = load(add(), sets)
    assert loaded.recipe.optim.fake.betas == (0.5, 0.6)
    assert loaded.recipe.optim.fake.lr == 1e-3
    assert loaded.recipe.train.compile is True
    assert loaded.recipe.method.noise_fake.name == "uniform"
    assert loaded.recipe.about == "a = b"
    assert loaded.recipe.expect["nfe"].ours == 1
    assert loaded.origins["method.noise_fake.name"] == loaded.origins["expect.nfe.ours"] == "--set"


def test_set_below_a_default_section_keeps_the_rest_of_the_default() -> None:
    loaded = loads(MINIMAL_DISTILL, source="x", sets=["method.noise_generator.t_max=300"])
    assert loaded.recipe.method.noise_generator.name == "karras"
    assert loaded.recipe.method.noise_generator.t_max == 300
    assert loaded.origins["method.noise_generator.t_max"] == "--set"
    assert loaded.origins["method.noise_generator.name"] == "default"


def test_set_opens_a_section_that_is_null() -> None:
    assert loads(MINIMAL_DISTILL, source="x", sets=["measure.features=identity"]).recipe.measure.n == 10_000
    text = MINIMAL_DISTILL + "measure: null\n"
    assert loads(text, source="x", sets=["measure.features=identity"]).recipe.measure.features == "identity"
    assert faults(MINIMAL_DISTILL, ("measure.n=3",)) == ["--set measure.features: required, but missing"]


# -- base


def test_base_lends_settings_and_not_claims(add: Add) -> None:
    add()
    own = "base: sim/edm-digits\nabout: longer\nsize: gpu\n"
    own += "train:\n  steps: 900\nmethod: {noise_generator: {t_max: 600}}\n"
    loaded = load(add("distill/sim/long", own))
    recipe = loaded.recipe
    assert (recipe.train.steps, recipe.optim.fake.lr, recipe.method.distance) == (900, 2e-4, "l2")
    assert recipe.method.noise_generator.t_max == 600
    assert (recipe.default, recipe.expect, recipe.about) == (False, {}, "longer")
    assert loaded.origins["train.steps"] == "long.yaml:5"
    assert loaded.origins["optim.fake.lr"] == "base edm-digits.yaml:16"
    assert loaded.origins["default"] == loaded.origins["expect"] == "default"


def test_a_base_does_not_supply_what_a_recipe_says_of_itself(add: Add) -> None:
    add()
    with pytest.raises(RecipeError) as caught:
        load(add("distill/sim/long", "base: sim/edm-digits\n"))
    assert [line.partition("long.yaml:")[2] for line in str(caught.value).splitlines()] == [
        "1: about: required, but missing",
        "1: size: required, but missing",
    ]


def test_another_variant_replaces_the_section_of_the_base(add: Add) -> None:
    add()
    head = "base: sim/edm-digits\nabout: x\nsize: gpu\n"
    loaded = load(add("distill/sim/a", head + "method: {noise_generator: {name: lognormal, mean: 1}}\n"))
    assert loaded.recipe.method.noise_generator == LogNormal(name="lognormal", mean=1)
    # negative control: the same section with no name of its own keeps the variant, and then `mean` is wrong
    with pytest.raises(RecipeError, match=r"method\.noise_generator\.mean: unknown key"):
        load(add("distill/sim/b", head + "method: {noise_generator: {mean: 1}}\n"))


def test_base_may_be_a_file_beside_the_recipe(add: Add, tmp_path: Path, sim: str) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "base.yaml").write_text(sim)
    (folder / "own.yaml").write_text("base: base.yaml\nabout: x\nsize: gpu\nseed: 4\n")
    assert load(folder / "own.yaml").recipe.seed == 4


@pytest.mark.parametrize(
    ("base", "fault"),
    [
        ("distill/sim/nothing", "base: no recipe `distill/sim/nothing`"),
        ("distill/sim/own", "base: `distill/sim/own` has a base itself; only one step is allowed"),
        ("[a]", "base: must be the name of a recipe"),
    ],
)
def test_a_wrong_base_is_one_fault_among_the_others(add: Add, sim: str, base: str, fault: str) -> None:
    path = add("distill/sim/own", sim + f"wrong: 1\nbase: {base}\n")
    with pytest.raises(RecipeError) as caught:
        load(path)
    first, second = str(caught.value).splitlines()
    assert "wrong: unknown key" in first
    assert fault in second


def test_faults_of_a_base_name_its_file(add: Add, sim: str) -> None:
    add(text=edit(sim, "distance: l2", "distnce: l2"))
    with pytest.raises(
        RecipeError, match=r"edm-digits\.yaml:12: method\.distnce: unknown key; did you mean `distance`\?"
    ):
        load(add("distill/sim/own", "base: sim/edm-digits\nabout: x\nsize: gpu\n"))


# -- faults


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("  distance: l2", "  distnce: l2", "method.distnce: unknown key; did you mean `distance`?"),
        (
            "  steps: 100",
            "  steps: 100\nsteps: 3",
            "steps: unknown key; did you mean `train.steps` or `measure.steps`?",
        ),
        ("t_max: 700", "tmax: 700", "method.noise_generator.tmax: unknown key; did you mean `t_max`?"),
        ("name: karras", "name: karas", "method.noise_generator.name: unknown name `karas`; did you mean `karras`?"),
        ("name: karras, ", "", "method.noise_generator.name: required, but missing"),
        ("distance: l2", "c: -1", "method.c: must be `auto` or at least 0, not `-1`"),
        ("distance: l2", "c: atuo", "method.c: must be `auto` or a number, not `atuo`; did you mean `auto`?"),
        ("distance: l2", "path: Full", "method.path: must be `frozen` or `full`, not `Full`; did you mean `full`?"),
        ("lr: 1e-4", "lr: yes", "optim.generator.lr: must be a number, not the text `yes`"),
        ("lr: 1e-4", "lr: true", "optim.generator.lr: must be a number, not `true`"),
        ("lr: 1e-4", "lr: -.inf", "optim.generator.lr: must be finite, not `-.inf`"),
        ("lr: 1e-4", "lr: 0", "optim.generator.lr: must be greater than 0, not `0`"),
        ("steps: 100", "steps: 1_000", "train.steps: must be a whole number, not the text `1_000`"),
        ("steps: 100", "steps: 1.0", "train.steps: must be a whole number, not `1.0`"),
        ("[0, 0.9]", "[0, 1.0]", "optim.fake.betas[1]: must be less than 1, not `1.0`"),
        ("[0, 0.9]", "[0]", "optim.fake.betas: the list is too short: value 2 is missing"),
        ("[0, 0.9]", "[0, 0, 0]", "optim.fake.betas: must be a list of at most 2 values, not `[0, 0, 0]`"),
        ("[0, 0.9]", "0.9", "optim.fake.betas: must be a list, not `0.9`"),
        ("teacher: edm-digits", "teacher: 3", "teacher: must be text, not `3`"),
        ("default: true", "default: 1", "default: must be true or false, not `1`"),
        (
            "size: laptop",
            "size: laptp",
            "size: must be `smoke`, `laptop`, `gpu` or `cluster`, not `laptp`; did you mean `laptop`?",
        ),
        ("name: sim", "name: smi", "method.name: `gentk distill` has no method `smi`; did you mean `sim`?"),
        ("task: distill", "task: distil", "task: unknown task `distil`; did you mean `distill`?"),
        ("  steps: 100", "  batch: 100", "train.steps: required, but missing"),
        ("size: laptop", "size: laptop\nsize: gpu", "size: given twice, first on line 4"),
    ],
)
def test_one_fault_gives_one_line(sim: str, old: str, new: str, fault: str) -> None:
    loads(sim, source="sim.yaml")  # negative control: without the fault it loads
    found = faults(edit(sim, old, new))
    assert [re.sub(r"sim\.yaml:\d+: ", "", line) for line in found] == [fault]
    lacks_a_key = fault.startswith("train.steps: required")  # reported at the section, which is one line above
    assert int(found[0].split(":")[1]) == line_of(sim, old) + new.count("\n") - lacks_a_key


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("about: x\n", "task: required, but missing; one of `"),
        ("task: distill\nmethod: {}\n", "method.name: required, but missing; one of"),
        ("task: distill\nmethod: sim\n", "method: must be a section with keys of its own, not the text `sim`"),
        ("task: distill\n", "sim.yaml:1: teacher: required, but missing"),
    ],
)
def test_a_recipe_that_lacks_its_task_or_method(text: str, missing: str) -> None:
    assert any(missing in line for line in faults(text))


@pytest.mark.parametrize("text", ["", "- a\n", "just text\n", "3\n"])
def test_a_file_that_is_no_mapping(text: str) -> None:
    assert faults(text) == ["sim.yaml:1: a recipe is a mapping, `key: value` line by line"]


def test_all_faults_come_at_once_sorted_by_line(sim: str) -> None:
    text = edit(edit(edit(sim, "distance: l2", "distnce: l2"), "lr: 1e-4", "lr: fast"), "about:", "about: x\nabout:")
    found = faults(text + "stray: 1\n", ("train.stpes=3", "nonsense", "seed=[", "train.steps.x=1"), teacher=3)
    assert [line.split(": ")[0] for line in found[:4]] == ["sim.yaml:4", "sim.yaml:13", "sim.yaml:16", "sim.yaml:20"]
    assert found[4:] == [
        "--set train.stpes: unknown key; did you mean `steps`?",
        "--set nonsense: write KEY=VALUE",
        "--set seed: `[` is not YAML: did not find expected node content",
        "--set train.steps: is a value; it has no keys",
        "--teacher: must be text, not `3`",
    ]


def test_an_unknown_method_does_not_hide_the_other_faults(sim: str) -> None:
    found = faults(edit(edit(sim, "name: sim", "name: smi"), "steps: 100", "steps: 0"), ("method.foo=1",))
    assert [line.split(": ")[1] for line in found] == ["method.name", "train.steps"]


def test_a_value_of_set_is_judged_by_the_schema(sim: str) -> None:
    assert faults(sim, ("train.steps=many", "method.noise_generator.std=1")) == [
        "--set method.noise_generator.std: unknown key; did you mean `method.noise_fake.std`?",
        "--set train.steps: must be a whole number, not the text `many`",
    ]


def test_the_hint_names_a_recipe_to_look_at(add: Add, sim: str) -> None:
    add()
    with pytest.raises(RecipeError) as caught:
        loads(sim + "x: 1\n", source="sim.yaml")
    assert caught.value.hint == "gentk recipes show sim --full lists every field"
    assert caught.value.code == 2


def test_loaded_is_frozen(add: Add) -> None:
    loaded = load(add())
    assert isinstance(loaded, Loaded)
    with pytest.raises(AttributeError):
        loaded.text = ""  # type: ignore[misc]
