"""`gentk runs`: what the run folders hold, one or many."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gentk.cli import console
from gentk.engine.log import duration, tidy
from gentk.errors import GentkError, MissingAsset, RecipeError, did_you_mean

app = typer.Typer(help="Look at runs.", no_args_is_help=True)

_HOME = Path("runs")
_ABSENT = "-"
_COLUMNS = 6  # most runs side by side
_HEADLINE = 3  # figures in a line of `list`; `show` has all

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or its name below runs/.")]


@app.command("list")
@console.guard()
def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to look, at any depth.")] = _HOME,
    json: Json = False,
) -> None:
    """List the runs below a folder, oldest first."""
    if not folder.is_dir():
        if folder != _HOME:
            raise MissingAsset(f"{folder}: no such folder")
        found: list[dict[str, Any]] = []  # nothing has been run here yet
    else:
        found = sorted((_listed(path) for path in _below(folder)), key=lambda run: (str(run["started"]), run["run"]))
    if json:
        console.as_json(found)
    elif found:
        console.table(["run", "task", "method", "status", "steps", "started", "figures"], [_row(run) for run in found])
    else:
        console.note(f"no runs below {folder}/")
    for run in found:
        if run["error"] and run["status"] == "damaged":
            console.note(f"warning: {run['error']}")


@app.command()
@console.guard()
def show(
    run: RunName,
    follow: Annotated[bool, typer.Option("--follow", help="First print losses as they come, to its end.")] = False,
    json: Json = False,
) -> None:
    """Show one run: how it ended, its figures, its files."""
    from gentk.engine import report

    path = _folder(run)
    if follow:
        from gentk.cli import following

        if json:
            raise RecipeError("--follow prints lines, --json one object", hint="give one of them")
        following.follow(path)
        console.out("")
    info = _read(path)
    recipe, _ = report.read_recipe(path)
    expect = recipe.get("expect") or {}
    metrics = _metrics(info)
    files = [str(file) for file in _files(path)]
    if json:
        console.as_json({"run": str(path), **info, "expect": expect, "files": files})
        return
    facts = {
        "run": path,
        "recipe": " ".join(str(info[key]) for key in ("task", "method", "recipe") if info.get(key)),
        "status": info["status"],
        "error": info.get("error"),
        "steps": _steps(info),
        "time": duration(info["seconds"]) if info.get("seconds") else None,
        "started": info.get("started"),
        "finished": info.get("finished"),
        "seed": info.get("seed"),
        "host": info.get("host"),
        "device": info.get("device"),
        "command": info.get("command"),
    }
    known = {name: value for name, value in facts.items() if value not in (None, "")}
    width = max(map(len, known))
    for name, value in known.items():
        console.out(f"{name:{width}}  {value}")
    names = list(dict.fromkeys([*expect, *metrics]))
    if names:
        console.out("")
        rows = [_figure(name, metrics.get(name), expect.get(name)) for name in names]
        console.table(["figure", "this run", "recipe", "paper", "source"], rows)
    if files:
        console.out("")
        for file in files:
            console.out(file)


@app.command("report")
@console.guard()
def write_report(run: RunName) -> None:
    """Write the report of a run anew and print its path."""
    from gentk.engine import report

    console.out(str(report.write(_folder(run))))


@app.command()
@console.guard()
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders, or folders of runs such as a sweep.")
    ],
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="The page to write; else compare.html beside the runs.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare runs: figures with intervals over seeds, and the keys in which recipes differ; curves on a page."""
    from gentk.engine import comparison, report

    paths = [path for run in runs for path in _several(run)]
    if len(set(paths)) < 2:
        raise RecipeError("one run cannot be compared; name two or more")
    infos = [_read(path) for path in paths]
    metrics = [_metrics(info) for info in infos]
    figures = {
        name: [each.get(name) for each in metrics] for name in dict.fromkeys(n for each in metrics for n in each)
    }
    changes = comparison.changes([report.read_recipe(path)[0] for path in paths])
    groups = comparison.groups([comparison.read(path) for path in paths])
    place = _page(paths, page)
    if json:
        heads = [
            {"run": str(path), "status": info["status"], "seconds": info.get("seconds")}
            for path, info in zip(paths, infos, strict=True)
        ]
        settings = [_setting(group, list(figures)) for group in groups]
        told = {"runs": heads, "metrics": figures, "recipe": changes, "settings": settings}
        console.as_json({**told, "page": None if place is None else str(place)})
        return
    few = len(paths) <= _COLUMNS
    if few:
        _side_by_side(paths, infos, figures, changes)
    if not few or any(group.seeds > 1 for group in groups):
        if few:
            console.out("")
        _by_setting(groups, list(figures))
    if place is not None:
        console.note(f"page: {place}")


def _several(run: str) -> list[Path]:
    """The run folder that is meant, or the runs below a folder of runs."""
    for path in (Path(run), _HOME / run):
        if path.is_dir() and not (path / "run.json").is_file() and (found := list(_below(path))):
            return found
    return [_folder(run)]


def _page(paths: Sequence[Path], wanted: Path | None) -> Path | None:
    """Writes the page; where nothing was said of its place and that cannot be written, a note says so."""
    from gentk.engine import comparison

    place = wanted or Path(os.path.commonpath([path.parent.resolve() for path in paths])) / "compare.html"
    try:
        place = comparison.write(paths, place)
    except OSError as error:
        if wanted is not None:
            raise RecipeError(f"--page {wanted}: cannot be written: {error.strerror}") from error
        console.note(f"warning: {place}: no page: {error.strerror}")
        return None
    return Path(os.path.relpath(place)) if place.is_relative_to(Path.cwd()) else place


def _setting(group: Any, names: Sequence[str]) -> dict[str, Any]:
    from gentk.engine import comparison

    found = {}
    for name in names:
        if values := group.values(name):
            mean, half = comparison.interval(values)
            found[name] = {"mean": mean, "half_width": half, "n": len(values)}
    return {"setting": group.label, "runs": [str(m.folder) for m in group.members], "metrics": found}


def _by_setting(groups: Sequence[Any], names: Sequence[str]) -> None:
    """Means and intervals: settings in columns where they are few and the figures many, else in rows."""
    found = [_setting(group, names)["metrics"] for group in groups]
    words = [[_mean(each.get(name)) for name in names] for each in found]
    counts = [f"{sum(m.done for m in group.members)}/{len(group.members)}" for group in groups]
    labels = [group.label for group in groups]
    if len(groups) <= _COLUMNS and len(names) > len(groups):
        rows = [["done", *counts], *([name, *(w[k] for w in words)] for k, name in enumerate(names))]
        console.table(["figure", *labels], rows)
    else:
        rows = [[label, count, *each] for label, count, each in zip(labels, counts, words, strict=True)]
        console.table(["setting", "done", *names], rows)
    console.note("mean over the finished runs ± half of Student's 95 % interval")


def _mean(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return _ABSENT
    from gentk.engine.comparison import plus_minus

    return plus_minus(figure["mean"], figure["half_width"])


def _side_by_side(
    paths: Sequence[Path], infos: Sequence[Mapping[str, Any]], figures: Mapping[str, Sequence[Any]], changes: Any
) -> None:
    from gentk.recipe import yaml12

    names = _short(paths)
    rows: list[list[Any]] = [["status", *(info["status"] for info in infos)]]
    rows.append(["steps", *(_steps(info) or _ABSENT for info in infos)])
    rows.append(["seconds", *(tidy(info.get("seconds")) for info in infos)])
    rows += [[name, *map(tidy, values)] for name, values in figures.items()]
    console.table(["figure", *names], rows)
    console.out("")
    if changes:
        words = {
            key: [_ABSENT if each is None else yaml12.inline(each[0]) for each in row] for key, row in changes.items()
        }
        console.table(["recipe", *names], [[key, *row] for key, row in words.items()])
    else:
        console.out("the recipes are equal")


def _below(folder: Path) -> Iterator[Path]:
    """Every run folder at or below `folder`; runs do not nest, so none is searched."""
    for place, folders, files in os.walk(folder):
        if "run.json" in files:
            folders.clear()
            yield Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _folder(run: str) -> Path:
    for path in (Path(run), _HOME / run):
        if (path / "run.json").is_file():
            return path
    at_hand = [str(path) for path in _below(_HOME)] if _HOME.is_dir() else []
    guess = did_you_mean(run, [*at_hand, *(Path(path).name for path in at_hand)])
    raise MissingAsset(f"{run}: not a run folder: it holds no run.json{guess}", hint="gentk runs list shows the runs")


def _read(path: Path) -> dict[str, Any]:
    """run.json with the status as it is now."""
    from gentk.engine import report
    from gentk.engine.run import read_info

    info = read_info(path) or {}
    return {**info, "status": report.status(path, info)}


def _listed(path: Path) -> dict[str, Any]:
    from gentk.engine import report

    keys = ("task", "method", "recipe", "step", "steps", "seconds", "started", "finished", "error")
    try:
        info = _read(path)
    except (GentkError, OSError) as error:  # one damaged run must not hide the others
        info = {"status": "damaged", "error": str(error)}
    metrics = _metrics(info)
    expect = report.read_recipe(path)[0].get("expect") or {}
    ordered = {name: metrics[name] for name in dict.fromkeys([*expect, *metrics]) if name in metrics}
    return {"run": str(path), "status": info["status"], **{key: info.get(key) for key in keys}, "metrics": ordered}


def _row(run: Mapping[str, Any]) -> list[str]:
    figures = [f"{name} {tidy(value)}" for name, value in list(run["metrics"].items())[:_HEADLINE]]
    return [
        run["run"],
        run["task"] or _ABSENT,
        run["method"] or _ABSENT,
        run["status"],
        _steps(run) or _ABSENT,
        _local(run["started"]),
        ", ".join(figures) or _ABSENT,
    ]


def _local(moment: Any) -> str:
    """A moment of run.json, which counts in UTC, on the clock of whoever reads."""
    try:
        return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M}"
    except (TypeError, ValueError):
        return _ABSENT


def _steps(info: Mapping[str, Any]) -> str:
    step, steps = info.get("step"), info.get("steps")
    return f"{step or 0}/{steps}" if steps else str(step or "")


def _metrics(info: Mapping[str, Any]) -> dict[str, Any]:
    metrics = info.get("metrics")
    numbers = metrics.items() if isinstance(metrics, dict) else ()
    return {name: value for name, value in numbers if value is None or isinstance(value, int | float)}


def _figure(name: str, value: Any, wanted: Any) -> list[Any]:
    wanted = wanted if isinstance(wanted, dict) else {}
    source = "; ".join(str(wanted[key]) for key in ("where", "note") if wanted.get(key))
    return [name, value, wanted.get("ours"), wanted.get("paper"), source]


def _files(path: Path) -> Iterator[Path]:
    """What a reader of the run wants next: weights, pictures of the end, report, log."""
    yield from sorted((path / "export").glob("*.safetensors"))
    names = ("report.html", "recipe.yaml", "metrics.jsonl", "log.txt")
    yield from (file for name in names if (file := path / name).is_file())


def _short(paths: Sequence[Path]) -> list[str]:
    """The folders' own names, or the whole paths where two share one."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
