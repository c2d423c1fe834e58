"""What pydantic found wrong with a recipe, in the words of the recipe: one line per path, with the remedy in sight."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from gentk.errors import did_you_mean
from gentk.recipe.fields import elsewhere, keys, place, quoted
from gentk.recipe.yaml12 import Path, dotted, inline


def faults(schema: type[BaseModel], error: ValidationError) -> list[tuple[Path, str]]:
    """(path, fault) for each thing wrong, in pydantic's order.

    A missing key's path is that of the key. A value that fits none of several alternatives gives pydantic one error per
    alternative; here it is one fault.
    """
    grouped: dict[Path, list[dict[str, Any]]] = {}
    for one in error.errors(include_url=False):
        path, _ = place(schema, one["loc"])
        if one["type"].startswith("union_tag"):
            path = (*path, "name")
        elif one["type"] == "missing" and isinstance(path[-1], int):  # an element of a list of fixed length
            path = path[:-1]
        grouped.setdefault(path, []).append(dict(one))
    return [(path, _words(schema, path, group)) for path, group in grouped.items()]


def unknown_key(schema: Any, hint: Any, path: Path, values: Any = None) -> str:
    """The fault of the key at `path` that `hint`, the section of `schema` around it, does not know."""
    key = str(path[-1])
    suggestion = did_you_mean(key, keys(hint, values))
    if not suggestion:
        places = [f"`{dotted(other)}`" for other in dict.fromkeys(elsewhere(schema, key)) if other != path]
        suggestion = f"; did you mean {' or '.join(places)}?" if 0 < len(places) <= 3 else ""
    return f"unknown key{suggestion}"


def _words(schema: type[BaseModel], path: Path, group: list[dict[str, Any]]) -> str:
    first = group[0]
    match first["type"]:
        case "extra_forbidden":
            _, section = place(schema, first["loc"][:-1])
            return unknown_key(schema, section, path)
        case "missing" if isinstance(first["loc"][-1], int):
            return f"the list is too short: value {first['loc'][-1] + 1} is missing"
        case "missing" | "union_tag_not_found":
            return "required, but missing"
        case "union_tag_invalid":
            tag, names = first["ctx"]["tag"], quoted(first["ctx"]["expected_tags"])
            return f"unknown name `{tag}`{did_you_mean(tag, names) or _one_of(names)}"
    value = first["input"]
    wanted = list(dict.fromkeys(_wanted(one) for one in group))
    if None in wanted:  # a type of error that has no words here: pydantic's own
        return "; ".join(one["msg"].removeprefix("Value error, ") for one in group)
    choices = [name for one in group if one["type"] == "literal_error" for name in quoted(one["ctx"]["expected"])]
    suggestion = did_you_mean(value, choices) if isinstance(value, str) else ""
    return f"must be {' or '.join(filter(None, wanted))}, not {_shown(value, bool(choices))}{suggestion}"


def _shown(value: Any, may_be_text: bool) -> str:
    words = " ".join(value.split()) if isinstance(value, str) else inline(value)
    words = f"`{words if len(words) <= 60 else words[:57] + '...'}`"
    return f"the text {words}" if isinstance(value, str) and not may_be_text else words


def _one_of(names: list[str]) -> str:
    return f"; one of {', '.join(f'`{name}`' for name in names)}"


def _wanted(error: dict[str, Any]) -> str | None:
    context = error.get("ctx", {})
    match error["type"]:
        case "literal_error":
            return str(context["expected"]).replace("'", "`")
        case "int_type" | "int_from_float":
            return "a whole number"
        case "float_type":
            return "a number"
        case "bool_type":
            return "true or false"
        case "string_type":
            return "text"
        case "tuple_type":
            return "a list"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "a section with keys of its own"
        case "finite_number":
            return "finite"
        case "greater_than":
            return f"greater than {context['gt']:g}"
        case "greater_than_equal":
            return f"at least {context['ge']:g}"
        case "less_than":
            return f"less than {context['lt']:g}"
        case "less_than_equal":
            return f"at most {context['le']:g}"
        case "too_short":
            return f"a list of at least {context['min_length']} value{'s' if context['min_length'] > 1 else ''}"
        case "too_long":
            return f"a list of at most {context['max_length']} values"
    return None
