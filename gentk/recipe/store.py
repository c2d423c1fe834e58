"""Where recipes and models lie, and how the names that users type lead to them. Reads heads only; checks nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from os.path import exists, isdir, isfile  # unlike Path's, these take a name too long for one of no file
from pathlib import Path
from typing import Any

import gentk
from gentk.errors import MissingAsset, RecipeError, did_you_mean
from gentk.recipe import teachers, yaml12

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Entry:
    """A recipe of the store, TASK/METHOD/SUBJECT.yaml; `name` is the three parts joined by slashes."""

    name: str
    path: Path
    task: str
    method: str
    subject: str


def root() -> Path:
    """The folder of the shipped recipes: inside an installed package, beside it in a checkout."""
    package = Path(gentk.__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def assets() -> Path:
    """The folder of the models that ship with the package."""
    return Path(gentk.__file__).parent / "assets"


def cache() -> Path:
    """The folder of what was downloaded or imported, whether it exists or not.

    $GENTK_CACHE, else `gentk` under $XDG_CACHE_HOME, else `~/.cache/gentk`.
    """
    named = os.environ.get("GENTK_CACHE")
    root = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gentk"
    return root.expanduser()


def recipes() -> list[Entry]:
    """Every recipe of the store, by name."""
    found = []
    for path in root().glob("*/*/*.yaml"):
        task, method, subject = *path.parts[-3:-1], path.stem
        found.append(Entry(f"{task}/{method}/{subject}", path, task, method, subject))
    return sorted(found, key=lambda entry: entry.name)


def head(path: Path) -> dict[str, Any]:
    """The keys that stand in the file itself, unchecked. Raises RecipeError where it cannot be read as YAML."""
    value = yaml12.load(read(path), source=shown(path))
    return value if isinstance(value, dict) else {}


def read(path: Path) -> str:
    """The text of a recipe. Raises RecipeError where there is none."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"{shown(path)}: not a text file in UTF-8") from None
    except OSError as error:
        raise RecipeError(f"{shown(path)}: {(error.strerror or str(error)).lower()}") from None


def shown(path: Path) -> str:
    """A path as messages write it: relative to the working directory where it lies below that."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def find(ref: str | Path) -> Path:
    """The recipe file that `ref` means.

    A file (anything that ends in .yaml), a name (`distill/sim/edm-digits`), the end of one (`sim/edm-digits`,
    `edm-digits`) or a method (`distill/sim`, `sim`), which stands for its default recipe or its only one. Raises
    RecipeError, with a suggestion, for what is none of these or more than one.
    """
    text = str(ref)
    if isinstance(ref, Path) or text.endswith(_SUFFIXES):
        return _file(Path(text).expanduser())
    entries = recipes()
    named = [e for e in entries if e.name == text] or [e for e in entries if e.name.endswith(f"/{text}")]
    if not named:
        named = [e for e in entries if text in (e.method, f"{e.task}/{e.method}")]
        if len({(e.task, e.method) for e in named}) == 1 and (usual := _usual(named)):
            return usual.path
    if len(named) == 1:
        return named[0].path
    if named:
        raise RecipeError(f"`{text}` means several recipes", hint=f"one of {', '.join(e.name for e in named)}")
    if isfile(text):
        return Path(text)
    raise RecipeError(f"no recipe `{text}`{_close(text, entries)}", hint="gentk recipes list shows them all")


def name(path: Path) -> str:
    """What a recipe is called: its name in the store, or its path."""
    return next((entry.name for entry in recipes() if entry.path == path), shown(path))


def pick(task: str, method: str, subject: str | None) -> tuple[Path, bool]:
    """The recipe of a command, and whether it was made for another subject, which must then be swapped.

    The recipe named after the subject (`points-ring8` for `points:ring8`), or after the end of its path (`edm-mnist`
    for the run `runs/edm-mnist`, which is swapped in), or after a text-to-image model of its family, else the method's
    default recipe (or its only one). Raises RecipeError where none exists.
    """
    entries = [e for e in recipes() if (e.task, e.method) == (task, method)]
    if subject:
        whole, end = subject.replace(":", "-"), Path(subject).name.removesuffix(".safetensors")
        from gentk.recipe import pipelines  # it asks this module in turn

        for called in (whole, end, pipelines.kin(subject)):
            if own := next((e for e in entries if e.subject == called), None):
                return own.path, called != whole
    usual = _usual(entries)
    if usual:
        return usual.path, subject is not None
    if not entries:
        raise RecipeError(f"no recipe ships for `gentk {task} {method}`", hint="give your own: --recipe FILE")
    raise RecipeError(
        f"`gentk {task} {method}` has no default recipe",
        hint=f"--recipe with one of {', '.join(e.name for e in entries)}",
    )


def models() -> dict[str, Path]:
    """Name -> file of the models that ship with the package."""
    return {path.stem: path for path in sorted(assets().glob("*.safetensors"))}


def imported_place(name: str) -> Path:
    """The file of the model that is imported under this name, whether it exists or not."""
    return cache() / "models" / f"{name}.safetensors"


def imported() -> dict[str, Path]:
    """Name -> file of the models that `gentk models import` has brought."""
    return {path.stem: path for path in sorted(imported_place("any").parent.glob("*.safetensors"))}


def model_path(ref: str | Path) -> Path:
    """The weights that `ref` means: the name of a shipped or imported model, a safetensors file, or a run folder (what
    it exported).

    A name wins over a folder of the same name, which `./NAME` still reaches. Raises MissingAsset where there is
    nothing: with the command that brings it for a published teacher, else with a suggestion; RecipeError where a run
    exported several.
    """
    here = imported() | models()
    if str(ref) in here:
        return here[str(ref)]
    path = Path(ref).expanduser()
    if isfile(path):
        if path.suffix != ".safetensors":
            raise RecipeError(f"{shown(path)}: not a safetensors file", hint="gentk models import converts others")
        return path
    if isdir(path):
        if (path / "model_index.json").is_file():
            raise RecipeError(
                f"{shown(path)}: a pipeline of diffusers: this works on models without prompts",
                hint=f"gentk sample euler --model {ref} --prompt TEXT; distill and align know such models too",
            )
        return _export(path)
    if str(ref) in teachers.BY_NAME:
        raise teachers.BY_NAME[str(ref)].absent(imported_place(str(ref)))
    raise MissingAsset(
        f"no model `{ref}`{did_you_mean(str(ref), [*here, *teachers.BY_NAME])}",
        hint=f"a run folder, a safetensors file or one of {', '.join(here) or '(none here)'}; gentk models list shows "
        "what can be imported; text-to-image: a folder of diffusers or hf:OWNER/NAME",
    )


def _file(path: Path) -> Path:
    if isfile(path):
        return path
    if exists(path):
        raise RecipeError(f"{shown(path)}: not a file", hint="gentk recipes list shows what ships")
    beside = path.parent.iterdir() if path.parent.is_dir() else iter(())
    names = [p.name for p in beside if p.suffix in _SUFFIXES]
    raise RecipeError(
        f"{path}: no such file{did_you_mean(path.name, names)}", hint="gentk recipes list shows what ships"
    )


def _usual(entries: list[Entry]) -> Entry | None:
    """The one that says `default: true`, or the only one there is. A file that cannot be read is not the default."""
    if len(entries) == 1:
        return entries[0]
    return next((entry for entry in entries if _is_default(entry.path)), None)


def _is_default(path: Path) -> bool:
    try:
        return head(path).get("default") is True
    except RecipeError:
        return False


def _close(text: str, entries: Iterable[Entry]) -> str:
    """A suggestion in the form that was typed: a name for a name, a method for a method."""
    options = [
        o for e in entries for o in (e.name, e.method, e.subject, f"{e.task}/{e.method}", f"{e.method}/{e.subject}")
    ]
    return did_you_mean(text, dict.fromkeys(options))


def _export(run: Path) -> Path:
    found = sorted((run / "export").glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise RecipeError(
            f"{shown(run)}: the run exported several models", hint=f"one of {', '.join(shown(p) for p in found)}"
        )
    raise MissingAsset(f"{shown(run)}: no weights in export/", hint="a run exports its weights when it is done")
