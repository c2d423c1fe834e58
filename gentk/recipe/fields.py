"""Walking the schema of a recipe and the recipe itself: which keys there are, where, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from gentk.recipe.yaml12 import Path


class Field(NamedTuple):
    """One key of a resolved recipe. `section` marks a key that only holds further keys, which follow it."""

    path: Path
    value: Any
    description: str
    section: bool


def fields(recipe: BaseModel) -> Iterator[Field]:
    """Every key of a resolved recipe in the schema's order, sections before their keys, values as plain data."""
    yield from _model(recipe, recipe.model_dump(), ())


def leaves(recipe: BaseModel) -> Iterator[Field]:
    """The keys of a resolved recipe that hold a value."""
    return (field for field in fields(recipe) if not field.section)


def _model(model: BaseModel, plain: Mapping[str, Any], path: Path) -> Iterator[Field]:
    for key, info in type(model).model_fields.items():
        # A variant's `name` has no description of its own: there the variant speaks for itself.
        words = info.description or (_first_line(type(model)) if key == "name" else "")
        yield from _value(getattr(model, key), plain[key], (*path, key), words)


def _value(value: Any, plain: Any, path: Path, words: str) -> Iterator[Field]:
    inside = isinstance(value, BaseModel) or (isinstance(value, Mapping) and bool(value))
    yield Field(path, plain, words, inside)
    if isinstance(value, BaseModel):
        yield from _model(value, plain, path)
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield from _value(below, plain[key], (*path, key), "")


def _first_line(schema: type[BaseModel]) -> str:
    return (schema.__doc__ or "").partition("\n")[0].rstrip(".")


def arms(hint: Any) -> list[Any]:
    """The alternatives of an annotation, `Annotated` and `None` taken away."""
    if get_origin(hint) is Annotated:
        return arms(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [arm for part in get_args(hint) if part is not NoneType for arm in arms(part)]
    return [hint]


def sections(hint: Any) -> list[type[BaseModel]]:
    """The sections among the alternatives of an annotation."""
    return [arm for arm in arms(hint) if isinstance(arm, type) and issubclass(arm, BaseModel)]


def variant(hint: Any, values: Any) -> list[type[BaseModel]]:
    """The sections that `values` can be meant as: one where its `name` decides, else all of them."""
    found = sections(hint)
    name = values.get("name") if isinstance(values, Mapping) else None
    return [s for s in found if _tag(s) == name] or found


def below(hint: Any, part: str | int, values: Any = None) -> Any | None:
    """The annotation of key or index `part` within `hint` (`values` pick the variant); None if there is no such key."""
    if hint is Any:
        return Any
    for section in variant(hint, values):
        if part in section.model_fields:
            return section.model_fields[str(part)].annotation
        if section.model_config.get("extra") == "allow":
            return Any
    for arm in arms(hint):
        if get_origin(arm) is dict and isinstance(part, str):
            return get_args(arm)[1]
        if get_origin(arm) is tuple and isinstance(part, int):
            return get_args(arm)[0]
    return None


def default_of(hint: Any, key: str, values: Any = None) -> Any:
    """The default of a key of `hint`; None where it has none."""
    for section in variant(hint, values):
        if key in section.model_fields and not section.model_fields[key].is_required():
            return section.model_fields[key].get_default(call_default_factory=True)
    return None


def keys(hint: Any, values: Any = None) -> list[str]:
    """The keys that `hint` knows."""
    return list(dict.fromkeys(key for section in variant(hint, values) for key in section.model_fields))


def elsewhere(hint: Any, key: str, path: Path = ()) -> Iterator[Path]:
    """The paths within `hint` that end in `key`, for who writes `steps` and means `train.steps`."""
    for section in sections(hint):
        for name, info in section.model_fields.items():
            if name == key and path:
                yield (*path, name)
            yield from elsewhere(info.annotation, key, (*path, name))


def place(schema: type[BaseModel], loc: tuple[str | int, ...]) -> tuple[Path, Any]:
    """The path in the recipe that pydantic's `loc` means, and the annotation there.

    Where an annotation has several alternatives, pydantic's `loc` has one more part, which the path does not: the
    discriminator's value for sections (`("net", "unet", "width")`), a label for scalars (`("method", "c", "float")`).
    """
    path: Path = ()
    hint: Any = schema
    for part in loc:
        alternatives = arms(hint)
        if len(alternatives) > 1:
            hint = next((arm for arm in sections(hint) if part in (_tag(arm), arm.__name__)), None)
            if hint is None:
                break
            continue
        path = (*path, part)
        hint = below(hint, part)
    return path, hint


def quoted(expected: str) -> list[str]:
    """The values in pydantic's list of choices, `'a', 'b' or 'c'`."""
    return re.findall(r"'([^']*)'", expected)


def _tag(section: type[BaseModel]) -> Any:
    info = section.model_fields.get("name")
    return get_args(info.annotation)[0] if info and get_origin(info.annotation) is Literal else None
