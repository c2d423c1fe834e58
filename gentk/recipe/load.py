"""From a recipe file to a checked, frozen recipe that knows where each of its values is from.

A recipe is its file, laid over its `base:` if it names one, then the command's options, then `--set`. All faults are
collected and raised together. Values never pass through a type that could change them: what the schema does not take as
written is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from gentk.errors import RecipeError
from gentk.recipe import registry, store, yaml12
from gentk.recipe.faults import faults, unknown_key
from gentk.recipe.fields import below, default_of, leaves, sections
from gentk.recipe.schema import Section
from gentk.recipe.yaml12 import Path, dotted

_OWN = ("about", "size", "default", "expect")  # what a recipe says of itself: a base lends settings, not claims


@dataclass(frozen=True)
class Loaded:
    """A resolved recipe and its history.

    `recipe` is an instance of the task's `Recipe[Config]`. `origins` has, for each key that holds a value, `FILE:LINE`,
    `base FILE:LINE`, `default`, `--set` or the option it is from. `source` and `text` are the file's path, as messages
    write it, and its content; `lines` has the line of each path in it.
    """

    recipe: Any
    origins: dict[str, str]
    source: str
    text: str
    lines: dict[str, int]


def load(source: str | File, sets: Sequence[str] = (), *, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """The recipe that `source` (a name or a file, see `store.find`) gives with `overrides` and then `sets` on top.

    sets: `KEY.KEY=VALUE` each, the value in YAML. overrides: path -> value from the command's own options, such as
    {"teacher": "edm-digits"}. In both, a text for a section that has a name sets that name: {"data": "cifar10"}.
    Raises RecipeError with every fault on a line of its own, in the order of the places.
    """
    path = store.find(source)
    return loads(store.read(path), source=path, sets=sets, overrides=overrides)


def loads(
    text: str, *, source: str | File, sets: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> Loaded:
    """`load` for the text of a recipe, say from the header of a model file; `source` is what messages call it."""
    label = store.shown(source) if isinstance(source, File) else source
    own = _layer(text, label, _OWN_FILE)
    layers = [*_base(own, source), own]
    draft = _Draft(found=[fault for layer in layers for fault in layer.faults])
    schema = draft.schema(layers)
    for layer in layers:
        draft.lay(schema, layer.values, layer.places)
    for key, value in (overrides or {}).items():
        option = f"--{key.replace('_', '-')}" if len(key) > 1 else f"-{key}"
        draft.put(schema, key, value, _Place(_COMMAND, option, 0))
    for each in sets:
        draft.set(schema, each)
    recipe = draft.checked(schema)
    if draft.found:
        raise RecipeError(draft.message(), hint=draft.hint())
    origins = {dotted(leaf.path): draft.origin(leaf.path) for leaf in leaves(recipe)}
    return Loaded(recipe, origins, label, text, {dotted(path): line for path, line in own.lines.items() if path})


_OWN_FILE, _BASE_FILE, _COMMAND = range(3)


class _Place(NamedTuple):
    """Where a value was given. The order of places is the order in which faults are reported."""

    rank: int
    label: str
    line: int

    def origin(self) -> str:
        if self.rank == _COMMAND:
            return self.label
        return f"{'base ' if self.rank == _BASE_FILE else ''}{File(self.label).name}:{self.line}"

    def begin(self, path: Path) -> str:
        """What a message about `path` starts with."""
        if self.rank == _COMMAND:
            return f"--set {dotted(path)}" if self.label == "--set" else self.label
        return ": ".join(filter(None, (f"{self.label}:{self.line}", dotted(path))))


class _Found(NamedTuple):
    """A fault with its place."""

    place: _Place
    path: Path
    text: str


class _Layer(NamedTuple):
    """One file: its values, the place of each path, and what was wrong with it as YAML."""

    values: dict[str, Any]
    places: dict[Path, _Place]
    lines: dict[Path, int]
    faults: list[_Found]


class _AnyMethod(Section):
    """Stands in for an unknown method, so that the rest of its recipe can still be checked."""

    model_config = ConfigDict(extra="allow")


def _layer(text: str, label: str, rank: int) -> _Layer:
    document = yaml12.parse(text, source=label)
    if not isinstance(document.value, dict):
        raise RecipeError(f"{label}:1: a recipe is a mapping, `key: value` line by line")
    places = {path: _Place(rank, label, line) for path, line in document.lines.items()}
    wrong = [_Found(_Place(rank, label, line), path, words) for line, path, words in document.faults]
    return _Layer(document.value, places, document.lines, wrong)


def _base(own: _Layer, source: str | File) -> Iterator[_Layer]:
    """The layer below `own`, if it names one; faults of naming it are added to `own`."""
    if "base" not in own.values:
        return
    ref = own.values.pop("base")
    here = own.places[("base",)]
    if not isinstance(ref, str):
        own.faults.append(_Found(here, ("base",), "must be the name of a recipe"))
        return
    try:
        beside = ref.endswith((".yaml", ".yml")) and isinstance(source, File)
        path = store.find(File(source).parent / ref if beside else ref)
    except RecipeError as error:
        own.faults.append(_Found(here, ("base",), str(error)))
        return
    layer = _layer(store.read(path), store.shown(path), _BASE_FILE)
    if "base" in layer.values:
        own.faults.append(_Found(here, ("base",), f"`{ref}` has a base itself; only one step is allowed"))
        return
    values = {key: value for key, value in layer.values.items() if key not in _OWN}
    places = {path: place for path, place in layer.places.items() if not path or path[0] not in _OWN}
    yield layer._replace(values=values, places=places)


@dataclass
class _Draft:
    """A recipe in the making: plain values, the place that gave each path, and the faults found so far."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, _Place] = field(default_factory=dict)
    found: list[_Found] = field(default_factory=list)

    def schema(self, layers: Sequence[_Layer]) -> type[BaseModel] | None:
        """The schema of the task and method that the layers name; None, with a fault, where the task is not known."""

        self.places = {path: place for layer in layers for path, place in layer.places.items()}
        task, method, name = (_given(layers, *path) for path in (("task",), ("method",), ("method", "name")))
        if not isinstance(task, str):
            self.fault(("task",), f"required, but missing; one of {', '.join(f'`{t}`' for t in registry.tasks())}")
            return None
        try:
            module = registry.task_module(task)
        except RecipeError as error:
            self.fault(("task",), str(error))
            return None
        try:
            if isinstance(name, str):
                return registry.recipe_schema(task, name)
        except RecipeError as error:
            self.fault(("method", "name"), str(error))
        if isinstance(method, dict) and not isinstance(name, str):
            self.fault(("method", "name"), f"required, but missing; one of {', '.join(registry.methods(task))}")
        loose: type[BaseModel] = module.Recipe[_AnyMethod]
        return loose

    def lay(self, hint: Any, values: dict[str, Any], places: dict[Path, _Place], path: Path = ()) -> None:
        """Put a layer on top: sections are merged key by key, everything else is replaced.

        A section that names another variant than the one below it starts afresh: the other's keys mean nothing to it.
        """
        target = self.at(path)
        self.places[path] = places[path]
        for key, value in values.items():
            here, inner = (*path, key), below(hint, key, values)
            old = target.get(key)
            if isinstance(old, dict) and isinstance(value, dict) and not _other_variant(inner, here, old, value):
                self.lay(inner, value, places, here)
            else:
                target[key] = value
                self.moved(here, {p: place for p, place in places.items() if p[: len(here)] == here})

    def put(self, schema: type[BaseModel] | None, key: str, value: Any, place: _Place) -> None:
        """Set one dotted path. A fault where the schema has no such path."""
        path: Path = tuple(key.split("."))
        hint: Any = schema
        for depth, part in enumerate(path):
            if schema is None:
                return
            there = self.at(path[:depth])
            inner = below(hint, part, there)
            if inner is None:
                known = sections(hint)
                words = unknown_key(schema, hint, path[: depth + 1], there) if known else "is a value; it has no keys"
                self.found.append(_Found(place, path if known else path[:depth], words))
                return
            hint = inner
        if isinstance(value, str) and any("name" in section.model_fields for section in sections(hint)):
            path = (*path, "name")
        self.open(schema, path[:-1], place)
        target = self.at(path[:-1])
        if isinstance(target, dict):  # else the file is wrong there, and that is reported
            target[path[-1]] = value
            self.moved(path, dict.fromkeys(_paths(value, path), place))

    def set(self, schema: type[BaseModel] | None, text: str) -> None:
        """Apply one `KEY.KEY=VALUE`."""
        key, equals, words = text.partition("=")
        place = _Place(_COMMAND, "--set", 0)
        if not (key and equals):
            self.found.append(_Found(place, (text,), "write KEY=VALUE"))
            return
        try:
            value = yaml12.load(words, source="value")
        except RecipeError as error:
            said = [line.partition(": ")[2] for line in str(error).splitlines()]
            self.found.append(_Found(place, (key,), f"`{words}` is not YAML: {'; '.join(said)}"))
            return
        self.put(schema, key.strip(), value, place)

    def open(self, schema: Any, path: Path, place: _Place) -> None:
        """Make the sections along `path` that are not there, with what their defaults say, so that keys can be set."""
        hint = schema
        for depth, part in enumerate(path):
            outer = self.at(path[:depth])
            if not isinstance(outer, dict):
                return
            if outer.get(part) is None:
                default = default_of(hint, str(part), outer)
                outer[part] = default.model_dump(exclude_unset=True) if isinstance(default, BaseModel) else {}
                self.moved(path[: depth + 1], {path[: depth + 1]: place})
            hint = below(hint, part, outer)

    def checked(self, schema: type[BaseModel] | None) -> Any:
        """The recipe; None, with faults, where the schema does not take the values."""
        if schema is None:
            return None
        try:
            return schema.model_validate(self.values)
        except ValidationError as error:
            for path, words in faults(schema, error):
                self.fault(path, words)
        return None

    def at(self, path: Path) -> Any:
        """The value at `path`; None where there is none."""
        value: Any = self.values
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def moved(self, path: Path, places: dict[Path, _Place]) -> None:
        """The value at `path` was replaced: forget where its parts were from, take `places`."""
        kept = {p: place for p, place in self.places.items() if p[: len(path)] != path}
        self.places = {**kept, **places}

    def fault(self, path: Path, words: str) -> None:
        """Note a fault at `path`, or at the section around it where the path itself was never given."""
        given = next(path[:depth] for depth in range(len(path), -1, -1) if path[:depth] in self.places)
        self.found.append(_Found(self.places[given], path, words))

    def message(self) -> str:
        """All faults, one per line."""
        ordered = sorted(self.found, key=lambda found: (found.place.rank, found.place.line))
        return "\n".join(f"{found.place.begin(found.path)}: {found.text}" for found in ordered)

    def hint(self) -> str:
        """Where the user can look up what is allowed."""
        method = self.at(("method", "name"))
        known = any(entry.method == method for entry in store.recipes())
        return f"gentk recipes show {method} --full lists every field" if known else ""

    def origin(self, path: Path) -> str:
        """Where the value at `path` is from."""
        return self.places[path].origin() if path in self.places else "default"


def _given(layers: Sequence[_Layer], *path: str) -> Any:
    """What the topmost layer that has `path` says there."""
    for layer in reversed(layers):
        value: Any = layer.values
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _other_variant(hint: Any, path: Path, old: dict[str, Any], new: dict[str, Any]) -> bool:
    several = len(sections(hint)) > 1 or path == ("method",)
    return several and "name" in old and "name" in new and old["name"] != new["name"]


def _paths(value: Any, path: Path) -> Iterator[Path]:
    """`path` and every path below it in `value`."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple) else ()
    for key, each in inside:
        yield from _paths(each, (*path, key))
