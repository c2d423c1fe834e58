"""YAML 1.2: the core schema's scalars, lines, what is refused, and that what is written reads back equal."""

import math
import random

import pytest
import yaml

from gentk.errors import RecipeError
from gentk.recipe import yaml12


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.", -2.0),
        (".5", 0.5),
        ("+3", 3),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),  # 15 in YAML 1.1
        ("1_000", "1_000"),  # 1000 in YAML 1.1
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("0b11", "0b11"),
        ("2024-01-02", "2024-01-02"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("true", True),
        ("False", False),
        ("tRUE", "tRUE"),
        ("null", None),
        ("~", None),
        ("", None),
        ("nULL", "nULL"),
        ("-", (None,)),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("inf", "inf"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("[1, [2.0, x], {a: []}]", (1, (2.0, "x"), {"a": ()})),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = yaml12.load(text, source="x")
    assert found == value
    assert type(found) is type(value)  # 1 == 1.0 == True


def test_nan_is_a_float() -> None:
    assert math.isnan(yaml12.load(".nan", source="x"))


def test_pure_python_parser_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(yaml.BaseLoader):
        yaml_implicit_resolvers = yaml12._Loader.yaml_implicit_resolvers

    text = "a: [1e-4, no, 0o17, ~]\nb: {c: 'x', d: }\n"
    fast = yaml12.parse(text, source="x")
    monkeypatch.setattr(yaml12, "_Loader", Slow)
    assert yaml12.parse(text, source="x") == fast


def test_every_path_has_its_line() -> None:
    document = yaml12.parse(
        "# head\na: 1\nb:\n  c:\n    - x\n    - {d: 2}\n  e: >\n    long\n    text\nf: 1\n", source="x"
    )
    assert {yaml12.dotted(path): line for path, line in document.lines.items()} == {
        "": 2,
        "a": 2,
        "b": 3,
        "b.c": 4,
        "b.c[0]": 5,
        "b.c[1]": 6,
        "b.c[1].d": 6,
        "b.e": 7,
        "f": 10,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "f.yaml:4: b.c: given twice, first on line 3"),
        ("a: 1\n3: 1\n", "f.yaml:2: the key `3` is not text; quote it"),
        ("a:\n  true: 1\n", "f.yaml:2: a: the key `true` is not text; quote it"),
        ("a: &x {b: 1}\nc: *x\n", "f.yaml:2: c: aliases (`*name`) are not supported; write the value out"),
        ("a: &x\n  b: *x\n", "f.yaml:2: a.b: aliases (`*name`) are not supported; write the value out"),
        ("a: !!python/name:os.system ''\n", "f.yaml:1: a: the tag `!!python/name:os.system` is not supported"),
        ("a: !mine [1]\n", "f.yaml:1: a: the tag `!mine` is not supported"),
        ("a: !!set {b: }\n", "f.yaml:1: a: the tag `!!set` is not supported"),
        ("a: !!int 1x\n", "f.yaml:1: a: `1x` is not of type int"),
        ("a: " + "9" * 5000, "f.yaml:1: a: a number of absurd length"),
        ("a: [1\nb: 2\n", "f.yaml:2: "),
        ("a: 1\n\tb: 2\n", "f.yaml:2: "),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: "),
        ("a: 1\nb: 2\nc: \x07\n", "f.yaml:3: a character that YAML does not allow"),
        ("a: \ud800\n", "f.yaml:1: a character that YAML does not allow"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        yaml12.load(text, source="f.yaml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_tabs_get_a_hint() -> None:
    with pytest.raises(RecipeError) as caught:
        yaml12.parse("a:\n\tb: 2\n", source="f")
    assert "tabs" in caught.value.hint


def test_deep_nesting_is_a_fault_and_not_a_crash() -> None:
    with pytest.raises(RecipeError):
        yaml12.load("[" * 5_000 + "]" * 5_000, source="f")


def test_all_faults_come_at_once_beside_the_value() -> None:
    document = yaml12.parse("a: 1\na: 2\nb: !x 1\n", source="f")
    assert [fault.line for fault in document.faults] == [2, 3]
    assert document.value == {"a": 1, "b": None}


TEXTS = [
    "",
    " ",
    "no",
    "Yes",
    "y",
    "null",
    "~",
    "1e-4",
    "1_000",
    "017",
    "0x1",
    ".5",
    "-",
    "- a",
    "a: b",
    "a #b",
    "#",
    "&a",
]
TEXTS += [
    "*a",
    "!a",
    "%a",
    "@a",
    "`a",
    "a,b",
    "[a",
    "{a}",
    "'",
    '"',
    "a'b",
    'a"b',
    "\\",
    "\n",
    "a\nb\n",
    "\t",
    " a",
    "a ",
]
TEXTS += [
    "arXiv:2410.16794",
    "images:/data/x",
    "a:",
    "x/y.z",
    "é",
    "中文",
    "😀",
    "\x85",
    "\u2028",
    "\ufeff",
    "\x7f",
    "---",
    "<<",
    "=",
]


def same(a: object, b: object) -> bool:
    return repr(a) == repr(b)  # tells 1 from 1.0 and from True, 0.0 from -0.0, and holds for NaN


@pytest.mark.parametrize("text", TEXTS)
def test_texts_survive(text: str) -> None:
    value = {"key": text, "list": (text, text), "map": {text: (text, {text: text})}}
    assert yaml12.load(yaml12.dump(value), source="x") == value
    assert yaml.safe_load(yaml12.dump({"key": text, "list": [text]})) == {"key": text, "list": [text]}  # a 1.1 reader


def test_numbers_survive_for_both_versions() -> None:
    numbers = [0.0, -0.0, 1.0, 1e-4, 1e-5, 1.5e-7, 1e16, 1e22, 1e300, 5e-324, 0.1 + 0.2, math.inf, -math.inf, math.nan]
    value = {"floats": tuple(numbers), "ints": (0, -1, 10**30), "other": (True, False, None, (), {})}
    assert same(yaml12.load(yaml12.dump(value), source="x"), value)
    assert same(yaml.safe_load(yaml12.dump(value))["floats"], numbers)


def test_random_values_survive() -> None:
    rng = random.Random(0)

    def draw(depth: int) -> object:
        kind = rng.randrange(7 if depth else 5)
        if kind == 0:
            return rng.choice([None, True, False, rng.randrange(-9, 9), 10 ** rng.uniform(-20, 20)])
        if kind < 5:
            return "".join(rng.choice("ab1.e-+_:#,[]{}'\"\\ \n\t&*!|>%@~?é=0") for _ in range(rng.randrange(6)))
        if kind == 5:
            return tuple(draw(depth - 1) for _ in range(rng.randrange(4)))
        return {str(draw(0)): draw(depth - 1) for _ in range(rng.randrange(4))}

    for _ in range(1500):
        value = {f"k{i}": draw(3) for i in range(3)}
        text = yaml12.dump(value)
        assert same(yaml12.load(text, source="x"), value), text


def test_empty_mapping() -> None:
    assert yaml12.load(yaml12.dump({}), source="x") == {}
    assert yaml12.load("", source="x") is None
