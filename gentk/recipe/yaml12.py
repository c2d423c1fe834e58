"""YAML 1.2 (core schema) for recipes: read with the line of every key, written so that it reads back equal.

PyYAML resolves scalars by YAML 1.1, where `1e-4` is text, `no` is false, `1_000` is a number and `010` is eight. Its
parser is right for both versions, so it stays, and only the resolution of scalars is ours (YAML 1.2.2, section 10.3.2).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from gentk.errors import RecipeError

Path = tuple[str | int, ...]
"""Where a value stands: keys, and indices within lists. `()` is the whole document."""

_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"(?:null|Null|NULL|~|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)


class _Loader(getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]
    """PyYAML's parser (libyaml's, some ten times faster, where it was built in) with the core schema's scalars."""


for _kind, _pattern, _first in (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),  # before float, whose pattern also matches whole numbers
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(_TAG + _kind, _pattern, _first)


class Fault(NamedTuple):
    """One thing that is wrong: the line (from 1), the path it concerns and the fault in words."""

    line: int
    path: Path
    text: str


@dataclass(frozen=True)
class Document:
    """A parsed document: plain values (lists as tuples), the line of every path, and what was wrong short of syntax."""

    value: Any
    lines: dict[Path, int]
    faults: tuple[Fault, ...]


def parse(text: str, *, source: str) -> Document:
    """The one document in `text`; an empty text is the value None.

    Duplicate keys, keys that are not text, aliases and foreign tags come back as `faults`, so that a caller can report
    them beside its own. Raises RecipeError, `source:line: ...`, where the syntax leaves nothing to go on with.
    """
    try:
        node = _Loader(text).get_single_node()
        builder = _Builder()
        value = None if node is None else builder.build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        words = error.problem or error.context or "this is not YAML"
        row = text.split("\n")[line - 1] if line <= text.count("\n") + 1 else ""
        hint = "YAML indents with spaces, never with tabs" if re.match(r"\s*\t", row) else ""
        raise RecipeError(f"{source}:{line}: {words}", hint=hint) from None
    except (yaml.YAMLError, UnicodeError):
        raise RecipeError(f"{source}:{_unprintable(text)}: a character that YAML does not allow") from None
    except RecursionError:
        raise RecipeError(f"{source}:1: nested too deeply") from None
    return Document(value, builder.lines, tuple(builder.faults))


def load(text: str, *, source: str) -> Any:
    """The value of `text`. Raises RecipeError with every fault, one per line."""
    document = parse(text, source=source)
    if document.faults:
        ordered = sorted(document.faults, key=lambda fault: fault.line)
        said = [": ".join(filter(None, (f"{source}:{f.line}", dotted(f.path), f.text))) for f in ordered]
        raise RecipeError("\n".join(said))
    return document.value


def dotted(path: Path) -> str:
    """A path as users write it: `optim.generator.betas[1]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def dump(values: Mapping[str, Any]) -> str:
    """`values` as YAML in block style, a list of scalars on one line. `load` gives back an equal value.

    YAML 1.1 readers see the same values too: what they would misread is quoted, and floats carry a point.
    """
    return "".join(f"{line}\n" for line in _block(values, "")) if values else "{}\n"


def inline(value: Any) -> str:
    """One value on one line, as `--set` takes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(k)}: {inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(inline(v) for v in value) + "]"
    return _scalar(value)


class _Builder:
    """Turns nodes into plain values, noting lines and faults on the way."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.faults: list[Fault] = []
        self._seen: set[int] = set()

    def build(self, node: yaml.Node, path: Path) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        if id(node) in self._seen:  # an alias is the anchor's node again: refused, else ten lines can grow to gigabytes
            return self._fault(path, "aliases (`*name`) are not supported; write the value out")
        self._seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return tuple(self.build(child, (*path, i)) for i, child in enumerate(node.value))
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path)
        return self._fault(path, f"the tag {_shown(node.tag)} is not supported")

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            if not (isinstance(key_node, yaml.ScalarNode) and key_node.tag == f"{_TAG}str"):
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "[...]"
                self.faults.append(Fault(line, path, f"the key `{shown}` is not text; quote it"))
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in values:
                self.faults.append(Fault(line, here, f"given twice, first on line {self.lines[here]}"))
                continue
            self.lines[here] = line
            values[key] = self.build(child, here)
        return values

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text = str(node.value)
        match node.tag.removeprefix(_TAG):
            case "str":
                return text
            case "null" if _NULL.match(text):
                return None
            case "bool" if _BOOL.match(text):
                return text.lower() == "true"
            case "int" if _INT.match(text):
                if len(text) > 1000:  # Python refuses to convert some thousand digits
                    return self._fault(path, "a number of absurd length")
                return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
            case "float" if _FLOAT.match(text):
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            case "null" | "bool" | "int" | "float" as kind:
                return self._fault(path, f"`{text}` is not of type {kind}")
        return self._fault(path, f"the tag {_shown(node.tag)} is not supported")

    def _fault(self, path: Path, text: str) -> None:
        self.faults.append(Fault(self.lines[path], path, text))


def _shown(tag: str) -> str:
    return f"`!!{tag.removeprefix(_TAG)}`" if tag.startswith(_TAG) else f"`{tag}`"


_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def _unprintable(text: str) -> int:
    """The line of the first character outside YAML's printable set (section 5.1)."""
    found = _FORBIDDEN.search(text)
    return text.count("\n", 0, found.start()) + 1 if found else 1


def _block(values: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{_scalar(key)}:"
            yield from _block(value, indent + "  ")
        else:
            yield f"{indent}{_scalar(key)}: {inline(value)}"


_PLAIN = re.compile(r"[A-Za-z_/](?:[\w ./+@%^()=*;<>|&$~?!'-]|:(?=[\w./]))*(?<! )\Z", re.ASCII)
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}  # each is not text to some YAML reader
_ESCAPE = re.compile("[\x7f-\xa0\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    if _PLAIN.match(value) and value.lower() not in _WORDS:
        return str(value)
    # JSON's quoting is YAML's, but for control characters that JSON leaves alone and YAML takes for line breaks.
    return _ESCAPE.sub(lambda m: f"\\u{ord(m[0]):04x}", json.dumps(value, ensure_ascii=False))


def _float(value: float) -> str:
    if value != value:
        return ".nan"
    if value in (float("inf"), float("-inf")):
        return ".inf" if value > 0 else "-.inf"
    digits, e, exponent = repr(value).partition("e")
    return digits + ("" if "." in digits else ".0") + e + exponent
