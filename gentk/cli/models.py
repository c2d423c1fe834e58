"""`gentk models`: the models at hand, from their headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gentk.cli import console, exporting, importing
from gentk.errors import GentkError

if TYPE_CHECKING:
    from gentk.recipe.pipelines import Pipeline
    from gentk.recipe.teachers import Teacher

app = typer.Typer(help="Look at models, import and export them.", no_args_is_help=True)

_FACTS = (
    *("kind", "data", "process", "predicts", "inputs", "sigma_data", "sigma_init", "seed"),
    *("source", "sha256", "imported", "dtype", "licence", "gentk_version"),
)

app.command("import")(importing.import_)
app.command("export")(exporting.export)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
@console.guard()
def list_models(json: Json = False) -> None:
    """List the models that ship with gentk, those imported, and the published ones that can be had."""
    from gentk.recipe import pipelines, store, teachers

    shipped, imported = store.models(), store.imported()
    found = [{**_header(name, path), "where": "shipped"} for name, path in shipped.items()]
    found += [{**_header(name, path), "where": "imported"} for name, path in imported.items() if name not in shipped]
    here = {model["model"] for model in found}
    absent = [_absent(teacher) for teacher in teachers.TEACHERS if teacher.name not in here]
    absent += [_pipeline(each) for each in pipelines.PIPELINES]
    if json:
        console.as_json([*found, *absent])
    else:
        columns = ["model", "kind", "net", "data", "parameters", "size", "licence", "where"]
        console.table(columns, [_row(model) for model in [*found, *absent] if "error" not in model])
    for model in found:
        if "error" in model:
            console.note(f"warning: {model['error']}")


@app.command()
@console.guard()
def show(
    model: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A shipped model, a file or a run folder.")],
    json: Json = False,
) -> None:
    """Show one model: what it is, the recipe and seed that made it, its figures."""
    from gentk.recipe import stamp, store

    path = store.model_path(model)
    header = stamp.read_header(path)
    if json:
        console.as_json({"model": model, "path": str(path), **header})
        return
    facts = {
        "model": path.stem,
        "file": str(path),
        "size": f"{_size(header['bytes'])}, {header['parameters']} parameters",
        "net": _inline(header.get("net")),
        **{name: _inline(header[name]) for name in _FACTS if header.get(name) is not None},
    }
    width = max(map(len, facts))
    for name, text in facts.items():
        console.out(f"{name.replace('_', ' '):{width}}  {text}")
    if header.get("metrics"):
        console.out("")
        console.table(["figure", "value"], list(header["metrics"].items()))
    if header.get("recipe"):
        console.out(f"\n{header['recipe'].rstrip()}")


def _header(name: str, path: Path) -> dict[str, Any]:
    from gentk.recipe import stamp

    try:
        return {"model": name, "path": str(path), **stamp.read_header(path)}
    except GentkError as error:  # one damaged file must not hide the others
        return {"model": name, "path": str(path), "error": str(error)}


def _absent(teacher: Teacher) -> dict[str, Any]:
    """A published model that is not here, in the form of a header."""
    facts = {"kind": "denoiser", "data": teacher.data, "bytes": teacher.size, "sha256": teacher.sha256 or None}
    facts |= {"format": teacher.format, "source": teacher.source, "licence": teacher.licence}
    command = f"gentk models import {teacher.name}" if teacher.fetchable else None
    return {"model": teacher.name, "path": None, **facts, "where": "absent", "import": command}


def _pipeline(row: Pipeline) -> dict[str, Any]:
    """A text-to-image model, which is read where it lies and never imported, in the form of a header."""
    here = row.here()
    facts = {"kind": "denoiser", "data": "text", "bytes": None, "source": row.source, "licence": row.licence}
    command = f"gentk sample euler --model {row.name} --prompt TEXT"
    return {"model": row.name, "path": here, **facts, "where": "hub cache" if here else "absent", "import": command}


def _row(model: dict[str, Any]) -> list[Any]:
    net = model.get("net")
    shown = [model.get("kind"), net.get("name") if isinstance(net, dict) else net, _name(model.get("data"))]
    size = _size(model["bytes"]) if model["bytes"] else "-"
    where = model["where"] if model["where"] != "absent" else model["import"] or f"absent: see {model['source']}"
    end = [size, model.get("licence") or "-", where]
    return [model["model"], *(each or "-" for each in shown), model.get("parameters"), *end]


def _name(section: Any) -> Any:
    return section.get("name") if isinstance(section, dict) else section


def _inline(value: Any) -> str:
    from gentk.recipe import yaml12

    return value if isinstance(value, str) else yaml12.inline(value)


def _size(count: int) -> str:
    """Bytes as people read them: `12 kB`, `1.4 MB`."""
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
