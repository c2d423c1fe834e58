"""`gentk recipes`: list, show, copy, check and compare recipes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from gentk.cli.console import as_json, guard, note, out, table
from gentk.errors import RecipeError, RunFailed, did_you_mean

app = typer.Typer(no_args_is_help=True, help="List, show, copy, check and compare recipes.")

_Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A recipe's name, its method or a file.", show_default=False)
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
@guard()
def list_(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="Only this task's.", show_default=False)] = None,
    json: _Json = False,
) -> None:
    """List recipes with their size and what they make; * marks what the bare command runs."""
    from gentk.recipe import store

    entries = store.recipes()
    names = sorted({entry.task for entry in entries})
    if task is not None and task not in names:
        raise RecipeError(
            f"no recipes for the task `{task}`{did_you_mean(task, names)}", hint=f"tasks: {', '.join(names)}"
        )
    rows = [
        {"name": entry.name, "task": entry.task, "method": entry.method, "subject": entry.subject, **_head(entry.path)}
        for entry in entries
        if task in (None, entry.task)
    ]
    if json:
        as_json(rows)
    elif rows:
        table(
            ["", "recipe", "size", "makes"],
            [["*" if row["default"] else "", row["name"], row["size"], row["about"]] for row in rows],
        )
    else:
        note(f"no recipes in {store.root()}")


@app.command()
@guard()
def show(
    name: _Name,
    full: Annotated[bool, typer.Option("--full", help="Every key: value, where it is from, what it means.")] = False,
    json: _Json = False,
) -> None:
    """Print a recipe's file, or with --full the whole resolved recipe."""
    from gentk.recipe import store

    path = store.find(name)
    if not (full or json):
        out(store.read(path).rstrip("\n"))
        return
    from gentk.recipe import explain
    from gentk.recipe.fields import leaves
    from gentk.recipe.load import load
    from gentk.recipe.yaml12 import dotted

    loaded = load(path)
    if not json:
        out(explain.full(loaded).rstrip("\n"))
        return
    rows = [(dotted(leaf.path), leaf) for leaf in leaves(loaded.recipe)]
    keys = [{"key": k, "value": f.value, "origin": loaded.origins[k], "about": f.description} for k, f in rows]
    as_json({"recipe": store.name(path), "path": str(path), "keys": keys})


@app.command()
@guard()
def cp(
    name: _Name,
    dest: Annotated[
        Path | None, typer.Argument(metavar="[DEST]", help="A file or folder; else this folder.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite DEST.")] = False,
) -> None:
    """Copy a recipe to change it; prints the path of the copy."""
    from gentk.recipe import store

    source = store.find(name)
    text = store.read(source)
    target = dest or Path()
    try:
        if target.is_dir():
            target = target / source.name
        if target.exists() and target.samefile(source):
            raise RecipeError(f"{target}: is the recipe itself", hint="name another file")
        # "x" refuses in the same step that creates: no other process can slip a file in between.
        with target.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{target}: exists already", hint="--force overwrites it") from None
    except OSError as error:
        raise RunFailed(f"{target}: {(error.strerror or str(error)).lower()}") from None
    out(str(target))


@app.command()
@guard()
def check(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE|NAME]...", help="What to check.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Check every recipe that ships, and the store itself.")] = False,
    json: _Json = False,
) -> None:
    """Report every fault of recipes; exits with 2 if there is any."""
    from gentk.recipe import store

    if every == bool(recipes):
        raise RecipeError("name recipes to check, or --all", hint="gentk recipes check FILE|NAME... | --all")
    refs: list[str | Path] = [*(recipes or ())]
    faults: list[str] = []
    if every:
        refs = [entry.path for entry in store.recipes()]
        faults = _store_faults()
    rows: list[dict[str, Any]] = [{"recipe": "--all", "faults": faults}] if faults else []
    hint = ""
    for ref in refs:
        found, remedy = _faults(ref)
        hint = hint or remedy
        faults = faults + found
        label = store.name(ref) if isinstance(ref, Path) else ref
        rows.append({"recipe": label, "faults": found})
        if not (json or found):
            out(f"{label}: ok")
    if json:
        as_json(rows)
        raise typer.Exit(RecipeError.code if faults else 0)
    if faults:
        raise RecipeError("\n".join(faults), hint=hint)


@app.command()
@guard()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A recipe's name, its method or a file.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.", show_default=False)],
    json: _Json = False,
) -> None:
    """Print the keys whose values differ between two resolved recipes."""
    from gentk.recipe import explain, store
    from gentk.recipe.load import load
    from gentk.recipe.yaml12 import inline

    one, other = store.find(a), store.find(b)
    differences = explain.diff(load(one).recipe, load(other).recipe)

    def text(value: Any) -> str:
        return repr(value) if value is explain.ABSENT else inline(value)

    if json:
        rows = []
        for path, left, right in differences:
            sides = {side: value for side, value in (("a", left), ("b", right)) if value is not explain.ABSENT}
            rows.append({"key": path, **sides})
        as_json(rows)
    elif differences:
        table(["key", store.name(one), store.name(other)], [[d.path, text(d.a), text(d.b)] for d in differences])
    else:
        note("no differences")


def _head(path: Path) -> dict[str, Any]:
    """What `list` tells of a recipe. One that cannot be read is listed too: `check` says what is wrong with it."""
    from gentk.recipe import store

    try:
        head = store.head(path)
    except RecipeError:
        head = {"about": "(cannot be read; see gentk recipes check)"}
    size, about = (head.get(key) if isinstance(head.get(key), str) else "" for key in ("size", "about"))
    return {"size": size, "about": about, "default": head.get("default") is True, "path": str(path)}


def _faults(ref: str | Path) -> tuple[list[str], str]:
    """What is wrong with a recipe by itself, and the hint that goes with it."""
    from gentk.recipe.load import load

    try:
        load(ref)
    except RecipeError as error:
        return str(error).splitlines(), error.hint
    return [], ""


def _store_faults() -> list[str]:
    """What is wrong with the store as a whole: where its recipes lie and how many of them are defaults."""
    from gentk.recipe import store

    entries = store.recipes()
    if not entries:
        return [f"{store.shown(store.root())}: no recipe here"]
    known = {entry.path for entry in entries}
    stray = sorted(path for path in store.root().rglob("*.y*ml") if path not in known)
    faults = [f"{store.shown(path)}: a recipe lies at TASK/METHOD/SUBJECT.yaml" for path in stray]
    defaults: Counter[str] = Counter()
    for entry in entries:
        try:
            head = store.head(entry.path)
        except RecipeError:
            continue  # reported with the recipe itself
        method = head.get("method")
        stated = (head.get("task"), method.get("name") if isinstance(method, dict) else None)
        for key, says, place in zip(("task", "method.name"), stated, (entry.task, entry.method), strict=True):
            if says not in (None, place):
                faults.append(
                    f"{store.shown(entry.path)}: {key}: is `{says}`, but the file lies in {entry.task}/{entry.method}"
                )
        defaults[f"{entry.task}/{entry.method}"] += head.get("default") is True
    faults += [f"{method}: {n} recipes say `default: true`; one may" for method, n in defaults.items() if n > 1]
    return faults
