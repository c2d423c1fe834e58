"""`gentk models import`: a published model fetched if need be, checked, and made into a file of gentk's."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit, urlunsplit

import typer

from gentk.cli import console
from gentk.errors import MissingAsset, RecipeError, RunFailed, did_you_mean
from gentk.recipe import store, teachers

_EVERY = 10.0  # seconds between lines about a download where stderr is no terminal
_SOURCE = "A name that `gentk models list` shows, a file or folder, a URL, or a hub id OWNER/NAME."


@dataclass(frozen=True)
class _Source:
    """What is imported: where it lies here, where it is from, and what is known about it."""

    path: Path
    origin: str
    teacher: teachers.Teacher | None


@console.guard()
def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=_SOURCE)],
    form: Annotated[
        str | None, typer.Option("--as", metavar="FORMAT", help=f"{', '.join(teachers.FORMATS)}; else by the name.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write, .safetensors; else where --teacher finds it.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name to find it by; else the known one, or the file's.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set that it was trained on; its shape is checked.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="What the file does not hold: net.blocks=8; repeatable."),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for the header.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Checksum that the file must have.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write anew what is there already.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Nothing on stderr but errors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")] = False,
) -> None:
    """Import a published model: no code of its file is run, every tensor is accounted for."""
    console.quiet(quiet)
    values = _values(sets or [])
    form = _form(source, form)
    name, target = _target(source, name, out)
    if target.exists() and not force:
        if source not in teachers.BY_NAME:
            raise RecipeError(f"{store.shown(target)}: exists", hint="--force writes it anew, --name or --out another")
        console.note(f"{name} is here already; --force imports it anew")
    else:
        found = _fetched(source, form, target)
        _convert(found, form, target, data=data, values=values, licence=licence, sha256=sha256)
    if json:
        from gentk.recipe import stamp

        console.as_json({"model": name, "path": str(target), **stamp.read_header(target)})
    else:
        console.out(str(target))


def _values(sets: list[str]) -> dict[str, Any]:
    from gentk.recipe import yaml12

    values = {}
    for each in sets:
        key, equals, value = each.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set {each}: not KEY=VALUE")
        values[key.strip()] = yaml12.load(value, source=f"--set {key}")
    return values


def _known(source: str) -> teachers.Teacher | None:
    """The published model that a source is, by its name, its file's name or its hub id."""
    return teachers.BY_NAME.get(source) or teachers.BY_FILE.get(_last(source)) or teachers.BY_FILE.get(source)


def _last(source: str) -> str:
    return unquote(Path(urlsplit(source).path if _is_url(source) else source).name)


def public(url: str) -> str:
    """An address as it goes into a model's file: without user, password, query and fragment, which may be secret."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _is_url(source: str) -> bool:
    return source.startswith(("https://", "http://"))


def _form(source: str, given: str | None) -> str:
    """The format asked for, else the known model's. Raises RecipeError where neither is there, or they differ."""
    known = _known(source)
    if given is None:
        if known is None:
            raise RecipeError(f"{source}: which format?", hint=f"--as one of {', '.join(teachers.FORMATS)}")
        return known.format
    teachers.check_format(given)
    if (
        source in teachers.BY_NAME
        and known
        and given != known.format
        and {given, known.format} != {"ddpm", "diffusers"}
    ):
        raise RecipeError(f"--as {given}: `{source}` is of the format {known.format}", hint="leave --as out")
    return given


def _target(source: str, name: str | None, out: Path | None) -> tuple[str, Path]:
    """The model's name and the file to write. Raises RecipeError for a name that could not be found again."""
    known = _known(source)
    if out is not None:
        if out.suffix != ".safetensors":
            raise RecipeError(f"--out {out}: not a .safetensors file")
        return name or out.stem, out
    name = name or (known.name if known else Path(_last(source)).stem)
    if Path(name).name != name or name in ("", ".", ".."):
        raise RecipeError(f"--name {name}: a name, not a path", hint="--out names a file")
    if name in store.models():
        raise RecipeError(f"--name {name}: a model of this name ships with gentk", hint="give another --name, or --out")
    if name in teachers.BY_NAME and teachers.BY_NAME[name] is not known and known is not None:
        raise RecipeError(f"--name {name}: is the name of another published model")
    return name, store.imported_place(name)


def _fetched(source: str, form: str, target: Path) -> _Source:
    """The source as a file or folder here, downloaded if need be. Raises MissingAsset where it cannot be had."""
    from gentk.recipe import hub, weights

    known = _known(source)
    folder = form in ("diffusers", "ddpm")
    if source in teachers.BY_NAME and known:
        if not known.fetchable:
            raise known.absent(target, "it cannot be fetched by a command")
        try:
            if folder:
                return _Source(*_snapshot(known.source), known)
            row = weights.Weights(known.file, known.source, known.size, known.sha256, known.licence, known.note)
            with _Shown(known.file) as progress:
                return _Source(weights.find(row, progress=progress, say=console.note), known.source, known)
        except MissingAsset as error:
            raise known.absent(target, str(error)) from error
    if _is_url(source):
        row = weights.Weights(_last(source) or "download", source, None, "", "", "")
        with _Shown(row.name) as progress:
            place = weights.find(
                row, progress=progress, remedy="give the path of the file instead of the address", say=console.note
            )
            return _Source(place, public(source), known)
    path = Path(source).expanduser()
    if path.exists():
        return _Source(path, path.name, known)
    if folder and hub.is_id(source):
        return _Source(*_snapshot(source), known)
    names = did_you_mean(source, teachers.BY_NAME)
    raise MissingAsset(f"{source}: no such file{names}", hint="gentk models list shows what can be imported by name")


def _snapshot(ref: str) -> tuple[Path, str]:
    """The folder of a hub id and its origin, with the revision."""
    if console.is_quiet():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when the package is imported
    from gentk.recipe import hub

    place = hub.folder(ref, offline=False, needed=None, remedy="give it as SOURCE")
    return place, f"https://huggingface.co/{ref}/tree/{place.name}"


def _convert(
    found: _Source,
    form: str,
    target: Path,
    *,
    data: str | None,
    values: dict[str, Any],
    licence: str | None,
    sha256: str | None,
) -> None:
    known = found.teacher
    digest = _digest(found.path)
    if sha256 and (len(sha256) < 8 or not digest.startswith(sha256.lower())):
        raise RunFailed(f"{found.path}: sha256 {digest}, expected {sha256}", hint="damaged, or another file")
    if known and known.sha256 and digest != known.sha256:
        raise RunFailed(f"{found.path}: sha256 {digest}, {known.name} has {known.sha256}", hint="fetch it again")
    from gentk.nets import importing  # torch: after all that can be wrong without it

    data = data or (known.data if known else None)
    settings = {**(known.settings if known else {}), **values}
    model = importing.read(found.path, form, settings, data)
    licence = licence or model.licence or (known.licence if known else "not stated")
    if data is None:
        console.note("no --data: recipes that measure samples of it need `--set reference.name=DATA`")
    if known and not known.sha256 and not sha256:
        console.note(f"no checksum is published; this file's sha256 is {digest}")
    console.note(f"licence: {licence}")
    origin = {"source": found.origin, "sha256": digest}
    importing.save(model, target, data=data or "unnamed", licence=licence, origin=origin)


def _digest(path: Path) -> str:
    """The sha256 of the file, or of the network's weights in the folder."""
    from gentk.recipe import weights

    if not path.is_dir():
        return weights.digest(path)
    for place in (path / "unet", path):
        if found := sorted(place.glob("*.safetensors")):
            return weights.digest(found[0])
    raise MissingAsset(f"{path}: no .safetensors in this folder", hint="pickled .bin files are not read")


class _Shown:
    """Tells of a download on stderr: one line that changes on a terminal, a line every 10 s elsewhere."""

    def __init__(self, name: str) -> None:
        self._name, self._last, self._open = name, time.monotonic(), False

    def __enter__(self) -> Any:
        return None if console.is_quiet() else self._show

    def __exit__(self, *_: object) -> None:
        if self._open:
            print(file=sys.stderr)

    def _show(self, here: int, total: int | None) -> None:
        part = (
            f"{here / 10**6:,.0f} of {total / 10**6:,.0f} MB, {here / total:.0%}"
            if total
            else f"{here / 10**6:,.0f} MB"
        )
        now = time.monotonic()
        if sys.stderr.isatty():
            print(f"\r{self._name}: {part}", end="", file=sys.stderr, flush=True)
            self._open = True
        elif now - self._last >= _EVERY:
            self._last = now
            print(f"{self._name}: {part}", file=sys.stderr, flush=True)
