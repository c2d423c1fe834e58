"""The report of a run: one HTML page that stands alone, to look at, to print, to send to somebody.

Written from the run folder only, so it can be made again at any time and for a run that failed or still goes on. The
page asks nothing of the network and runs no script; its pictures and curves are inside.
"""

from __future__ import annotations

import base64
import fcntl
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from gentk import __version__
from gentk.engine.curves import svg
from gentk.engine.log import duration, read_metrics, tidy
from gentk.engine.run import read_info
from gentk.errors import GentkError, MissingAsset
from gentk.recipe import yaml12

T = TypeVar("T")

PICTURES = 12
"""Most pictures shown of one kind: evenly thinned, the first and the last always kept."""

_STEP = re.compile(r"(.+)-(\d{6,})")
_PNG = b"\x89PNG\r\n\x1a\n"
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
_MACHINE = ("steps_per_s", "images_per_s", "memory_mb")


def write(folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    Whatever the folder lacks is left out or said; only `run.json` must be there: MissingAsset otherwise, GentkError
    where it is damaged.
    """
    info = read_info(folder)
    if info is None:
        raise MissingAsset(f"{folder}: not a run folder: it holds no run.json", hint="gentk runs list shows the runs")
    recipe, recipe_text = read_recipe(folder)
    try:
        rows, fault = read_metrics(folder / "metrics.jsonl"), ""
    except GentkError as error:
        rows, fault = [], str(error)
    parts = [
        _head(status(folder, info), info, recipe, rows),
        _findings(info),
        _figures(info, recipe),
        _pictures(folder),
        _curves(rows, recipe) if not fault else f'<h2>Curves</h2><p class="fault">{escape(fault)}</p>',
        f"<h2>Recipe</h2><pre>{_coloured(recipe_text)}</pre>" if recipe_text else "",
        _environment(info),
        footer(),
    ]
    return publish(folder / "report.html", " ".join(_name(info)), parts)


def publish(path: Path, title: str, parts: Iterable[str]) -> Path:
    """Writes a page that stands alone, whole or not at all: `title` is text, `parts` are HTML; empty ones are left out.

    Returns its path.
    """
    style = Path(__file__).with_name("report.css").read_text("utf-8")
    page = _PAGE.format(title=escape(title), style=style, body="\n".join(part for part in parts if part))
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(page, "utf-8")
    fresh.replace(path)
    return path


def footer() -> str:
    """The last line of a page: which gentk wrote it, and when."""
    return f"<footer>gentk {__version__}, {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}</footer>"


def attempt(folder: Path) -> None:
    """`write`, or a warning on stderr where that fails: the end of a run is never hidden by its report."""
    try:
        write(folder)
    except (OSError, GentkError) as e:
        print(f"warning: {folder}: no report: {e}", file=sys.stderr)


def status(folder: Path, info: Mapping[str, Any]) -> str:
    """The status in `info` (run.json), or `interrupted`: it says running, yet no process holds the folder's lock."""
    said = str(info.get("status", "unknown"))
    if said != "running":
        return said
    try:
        with (folder / "run.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return "interrupted"
    except OSError:  # held, or a file system that cannot tell
        return "running"
    return "interrupted"


def read_recipe(folder: Path) -> tuple[dict[str, Any], str]:
    """`recipe.yaml` of a run as a mapping and as text: both empty where it is absent, the mapping if it is damaged."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        return {}, ""
    text = path.read_text("utf-8", errors="replace")
    try:
        recipe = yaml12.load(text, source=str(path))
    except GentkError:
        return {}, text
    return (recipe, text) if isinstance(recipe, dict) else ({}, text)


def _name(info: Mapping[str, Any]) -> list[str]:
    """Task, method and subject, those that are known."""
    subject = info.get("subject") or Path(str(info.get("recipe") or "")).stem
    return [str(word) for word in (info.get("task"), info.get("method"), subject) if word] or ["run"]


def _head(state: str, info: Mapping[str, Any], recipe: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    task, *rest = _name(info)
    title = escape(" \N{MIDDLE DOT} ".join(rest) or task)
    about, paper = str(recipe.get("about") or ""), str(recipe.get("paper") or "")
    link = escape(paper)
    if paper.startswith("arXiv:"):
        link = f'<a href="https://arxiv.org/abs/{escape(paper[6:])}">{escape(paper)}</a>'
    parts = [
        f'<header><div class="over">gentk {escape(task)}</div>',
        f'<h1>{title}<span class="status {escape(state)}">{escape(state)}</span></h1>',
        f'<p class="about">{escape(about)}</p>' if about else "",
        f'<p class="soft">After {link}</p>' if paper else "",
    ]
    if info.get("error"):
        parts.append(f'<p class="fault">{escape(str(info["error"]))}</p>')
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in _tiles(info, rows))
    parts.append(f'<dl class="tiles">{tiles}</dl></header>' if tiles else "</header>")
    return "\n".join(part for part in parts if part)


def _tiles(info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    steps, seconds = info.get("steps"), number(info.get("seconds"))
    step = max([info.get("step") or 0, *(row["step"] for row in rows[-1:])])  # run.json has the last checkpoint's
    if step or steps:
        yield "steps", str(step) if step == steps or not steps else f"{step} of {steps}"
    images = rows[-1].get("images") if rows else None
    if images:
        yield "images seen", f"{images:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    if seconds:
        yield "time", duration(seconds)
    speeds = [speed for row in rows if (speed := number(row.get("images_per_s")))]
    if speeds:  # not time over images: that would hold the building and the measuring too
        yield "training, per image", f"{tidy(1000 / median(speeds))} ms"
    if "seed" in info:
        yield "seed", str(info["seed"])


def _figures(info: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    metrics = info.get("metrics") or {}
    expect = _expect(recipe)
    names = [*expect, *(name for name in metrics if name not in expect)]
    if not names:
        return ""
    body = []
    for name in names:
        wanted = expect.get(name, {})
        source = escape(str(wanted.get("where") or ""))
        if wanted.get("note"):
            source += f"<small>{escape(str(wanted['note']))}</small>"
        cells = [
            f"<td><code>{escape(name)}</code></td>",
            f'<td class="number ours">{_shown(metrics.get(name))}</td>',
            f'<td class="number">{_shown(wanted.get("ours"))}</td>',
            f'<td class="number">{_shown(wanted.get("paper"))}</td>',
            f"<td>{source}</td>",
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = (
        '<tr><th>figure</th><th class="number">this run</th><th class="number">recipe, earlier</th>'
        '<th class="number">paper</th><th>source</th></tr>'
    )
    return f'<h2>Figures</h2><div class="wide"><table><thead>{head}</thead><tbody>{"".join(body)}</tbody></table></div>'


def _findings(info: Mapping[str, Any]) -> str:
    """What a run says in words (`remarks`: kind and words each) and as a table of texts (`table`: head and rows)."""
    parts = []
    table = info.get("table")
    if isinstance(table, dict) and table.get("rows"):
        cells = ["".join(f"<th>{escape(str(c))}</th>" for c in table["head"])]
        cells += ["".join(f"<td>{escape(str(c))}</td>" for c in row) for row in table["rows"]]
        head, *rows = (f"<tr>{row}</tr>" for row in cells)
        body = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
        parts.append(f'<h2>Table</h2><div class="wide">{body}</div>')
    for remark in info.get("remarks") or ():
        kind = "fault" if remark.get("kind") == "flag" else "soft"
        parts.append(f'<p class="{kind}">{escape(str(remark.get("words", "")))}</p>')
    return "\n".join(parts)


def _pictures(folder: Path) -> str:
    """Pictures `NAME-STEP.png` over time, grouped by NAME; every other picture by itself."""
    over_time: dict[str, list[tuple[int, Path]]] = {}
    single: list[Path] = []
    for path in sorted((folder / "samples").glob("*.png")):
        found = _STEP.fullmatch(path.stem)
        if found:
            over_time.setdefault(found[1], []).append((int(found[2]), path))
        else:
            single.append(path)
    parts = ["<h2>Samples</h2>"] if over_time or single else []
    parts += [picture(path, path.stem) for path in _thinned(single)]
    for name, found_paths in over_time.items():
        *earlier, (last_step, last) = _thinned(sorted(found_paths))
        row = "".join(picture(path, f"step {step}") for step, path in earlier)
        parts.append(f"<h3>{escape(name)}</h3>")
        large = picture(last, f"step {last_step}")
        kind = "time" if earlier else "time alone"
        parts.append(f'<div class="{kind}">' + (f'<div class="row">{row}</div>' if row else "") + f"{large}</div>")
    return "\n".join(parts)


def picture(path: Path, caption: str) -> str:
    """A PNG with a line under it; where it cannot be read, that line says so."""
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    if not data.startswith(_PNG):
        return f"<figure><figcaption>{escape(path.name)}: not readable as PNG</figcaption></figure>"
    text = base64.b64encode(data).decode("ascii")
    image = f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{text}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _curves(rows: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if name not in ("step", "images", "seconds")]
    losses = [name for name in names if name == "loss" or name.endswith("/loss")]
    figures = [name for name in names if name.startswith("eval/")]
    machine = [name for name in names if name in _MACHINE]
    rest = [name for name in names if name not in {*losses, *figures, *machine}]
    parts = []
    for title, size, group in (
        ("Curves", "", [*losses, *figures]),
        ("Training", " small", rest),
        ("Machine", " small", machine),
    ):
        drawn = "".join(_curve(rows, name, recipe) for name in group)
        if drawn:
            parts.append(f'<h2>{title}</h2><div class="curves{size}">{drawn}</div>')
    return "\n".join(parts)


def _curve(rows: Sequence[Mapping[str, Any]], name: str, recipe: Mapping[str, Any]) -> str:
    """One metric over the images seen; values that were not finite cannot be drawn and are counted."""
    along = "images" if all("images" in row for row in rows) else "step"
    logged = [(row[along], row[name]) for row in rows if name in row]
    points = [(float(x), y) for x, value in logged if (y := number(value)) is not None]
    lost = len(logged) - len(points)
    remark = f"{lost} not finite" if lost else ""
    if not points:
        return f"<figure><figcaption>{escape(name)}<span>{remark}</span></figcaption></figure>"
    last = tidy(points[-1][1]) + (f", {remark}" if remark else "")
    wanted = _expect(recipe).get(name.removeprefix("eval/"), {})
    levels = [
        (label, value)
        for label, key in (("paper", "paper"), ("earlier", "ours"))
        if (value := number(wanted.get(key))) is not None
    ]
    drawing = svg(points, x_label="images seen" if along == "images" else "step", levels=levels)
    return f"<figure><figcaption>{escape(name)}<span>{escape(last)}</span></figcaption>{drawing}</figure>"


def _environment(info: Mapping[str, Any]) -> str:
    facts = [(name, info.get(name)) for name in ("command", "recipe", "host", "device", "started", "finished")]
    versions = info.get("versions")
    if isinstance(versions, dict) and versions:
        facts.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    rows = []
    for name, value in facts:
        if value:
            text = escape(str(value))
            rows.append(f"<dt>{name}</dt><dd>{f'<code>{text}</code>' if name == 'command' else text}</dd>")
    return f'<h2>Environment</h2><dl class="facts">{"".join(rows)}</dl>' if rows else ""


def _coloured(text: str) -> str:
    """The recipe's text, escaped, its keys in bold and its comments in italics (the page gives both a colour)."""
    lines = []
    for line in escape(text, quote=False).rstrip().split("\n"):
        if line.lstrip().startswith("#"):
            lines.append(f"<i>{line}</i>")
        else:
            lines.append(re.sub(r"^(\s*(?:- )?)([\w./-]+:)(?=\s|$)", r"\1<b>\2</b>", line))
    return "\n".join(lines)


def _expect(recipe: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    expect = recipe.get("expect")
    if not isinstance(expect, dict):
        return {}
    return {str(name): wanted for name, wanted in expect.items() if isinstance(wanted, dict)}


def _thinned(items: Sequence[T]) -> list[T]:
    if len(items) <= PICTURES:
        return list(items)
    return [items[round(k * (len(items) - 1) / (PICTURES - 1))] for k in range(PICTURES)]


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _shown(value: Any) -> str:
    if value is None:
        return '<span class="soft">\N{EN DASH}</span>'
    return tidy(value) if isinstance(value, int | float) else escape(str(value))
