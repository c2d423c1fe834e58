"""Several runs on one page: their figures with intervals over seeds, curves, samples, and what their recipes differ in.

Runs whose recipes differ in nothing but the seed are one group: its figures are the mean over its finished runs with
Student's interval, t(0.975, n - 1) s / sqrt(n), which is none for a single run. The page stands alone, as a report.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from gentk.engine.curves import family
from gentk.engine.log import duration, read_metrics, tidy
from gentk.engine.report import footer, number, picture, publish, read_recipe, status
from gentk.engine.run import read_info
from gentk.errors import GentkError
from gentk.recipe import yaml12
from gentk.recipe.explain import CLAIMS

_COLOURS = ("#3451b2", "#d9480f", "#18794e", "#9c36b5", "#b58105", "#0b7285", "#c2255c", "#5c6066")
_COLUMNS = 6  # most settings side by side
_SHOWN = 24  # pictures: more make a page that no one scrolls through
_STEP = re.compile(r".+-(\d{6,})")
_LEVEL = 0.95

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Member:
    """One run as the page needs it."""

    folder: Path
    info: dict[str, Any]
    recipe: dict[str, Any]

    @property
    def done(self) -> bool:
        """Whether its figures are those of a finished run."""
        return bool(self.info.get("status") == "done")

    @property
    def metrics(self) -> dict[str, float]:
        """Its figures, those that are finite numbers."""
        said = self.info.get("metrics")
        pairs = said.items() if isinstance(said, dict) else ()
        return {name: found for name, value in pairs if (found := number(value)) is not None}


@dataclass(frozen=True)
class Group:
    """Runs of one recipe but for the seed: what they are called by, in which colour."""

    label: str
    colour: str
    members: list[Member]

    def values(self, name: str) -> list[float]:
        """A figure of the finished runs, once per seed: a run that was made twice tells nothing new."""
        done = [member for member in self.members if member.done and name in member.metrics]
        return list({member.recipe.get("seed", member.folder): member.metrics[name] for member in done}.values())

    @property
    def seeds(self) -> int:
        """How many seeds its runs have."""
        return len({member.recipe.get("seed") for member in self.members})


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, half-width of Student's 95 % interval of it); no width for a single value. At least one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.special import stdtrit

    t = float(stdtrit(len(values) - 1, (1 + _LEVEL) / 2))
    return mean, t * statistics.stdev(values) / math.sqrt(len(values))


def plus_minus(mean: float, half: float | None) -> str:
    """A mean and its interval for eyes, the half-width in two digits: `2.5 ± 2.1`."""
    return tidy(mean) + (f" \N{PLUS-MINUS SIGN} {tidy(float(f'{half:.2g}'))}" if half is not None else "")


def changes(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[list[Any] | None]]:
    """Key path -> per recipe `[value]`, or None where it lacks the key; only what is not the same everywhere."""
    flat = [{yaml12.dotted(path): value for path, value in _leaves(recipe, ())} for recipe in recipes]
    keys = dict.fromkeys(key for each in flat for key in each)
    table = {key: [[each[key]] if key in each else None for each in flat] for key in keys}
    return {key: row for key, row in table.items() if any(value != row[0] for value in row)}


def groups(members: Sequence[Member]) -> list[Group]:
    """Runs by what they compute, in the order in which they come."""
    found: dict[str, list[Member]] = {}
    for member in members:
        computed = {key: value for key, value in member.recipe.items() if key not in CLAIMS and key != "seed"}
        found.setdefault(json.dumps(computed, sort_keys=True, default=str), []).append(member)
    firsts = [{k: v for k, v in g[0].recipe.items() if k not in CLAIMS and k != "seed"} for g in found.values()]
    labels = _labels(changes(firsts), len(firsts))
    return [
        Group(label, _colour(k, len(labels)), group)
        for k, (label, group) in enumerate(zip(labels, found.values(), strict=True))
    ]


def _labels(differ: Mapping[str, list[list[Any] | None]], count: int) -> list[str]:
    """A name for each setting: as few of the keys that differ as tell all apart, the method before the others."""
    if not differ:
        return ["all runs"] * count
    chosen: list[str] = []
    rows: list[tuple[str, ...]] = [()] * count
    for key in sorted(differ, key=lambda key: key != "method.name"):  # stable: else the recipes' order
        longer = [(*row, _inline(value)) for row, value in zip(rows, differ[key], strict=True)]
        if len(set(longer)) > len(set(rows)):
            chosen, rows = [*chosen, key], longer
    said = [[w if k == "method.name" else f"{k}={w}" for k, w in zip(chosen, row, strict=True)] for row in rows]
    return [", ".join(words) for words in said]


def read(folder: Path) -> Member:
    """A run folder. Raises GentkError where its run.json is damaged or absent."""
    info = read_info(folder)
    if info is None:
        raise GentkError(f"{folder}: not a run folder: it holds no run.json")
    return Member(folder, {**info, "status": status(folder, info)}, read_recipe(folder)[0])


def write(folders: Sequence[Path], path: Path) -> Path:
    """Writes the page that compares the runs in `folders`, at least one, and returns its path."""
    members = [read(folder) for folder in folders]
    found = groups(members)
    title = _title(members)
    done = sum(member.done for member in members)
    seconds = sum(number(member.info.get("seconds")) or 0.0 for member in members)
    tiles = {"runs": str(len(members)), "finished": str(done), "settings": str(len(found)), "time": duration(seconds)}
    cells = "".join(f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in tiles.items())
    head = f'<header><div class="over">gentk</div><h1>{escape(title)}</h1><dl class="tiles">{cells}</dl></header>'
    return publish(
        path,
        f"{title}: {len(members)} runs",
        [head, _figures(found), _curves(found), _samples(found), _runs(found), _recipes(members), footer()],
    )


def _title(members: Sequence[Member]) -> str:
    names = {" ".join(str(m.info.get(k)) for k in ("task", "method", "subject") if m.info.get(k)) for m in members}
    return next(iter(names)) if len(names) == 1 else "runs compared"


def _figures(found: Sequence[Group]) -> str:
    names = list(dict.fromkeys(name for group in found for member in group.members for name in member.metrics))
    if not names:
        return ""
    settings = [f"{_key(group)}{escape(group.label)}" for group in found]
    counts = [f"{sum(m.done for m in group.members)} of {len(group.members)}" for group in found]
    cells = [[_interval(group.values(name)) for name in names] for group in found]
    if len(found) <= _COLUMNS and len(names) > len(found):  # few settings and many figures: a row for each figure
        head = "<th>figure</th>" + "".join(f'<th class="number">{each}</th>' for each in settings)
        figures = [(f"<code>{escape(name)}</code>", [row[k] for row in cells]) for k, name in enumerate(names)]
        lines = [("finished", counts), *figures]
    else:
        head = "".join(f'<th class="number">{escape(name)}</th>' for name in ("finished", *names))
        head, lines = (
            f"<th>setting</th>{head}",
            [(s, [c, *row]) for s, c, row in zip(settings, counts, cells, strict=True)],
        )
    rows = [f"<tr><td>{n}</td>" + "".join(f'<td class="number">{c}</td>' for c in row) + "</tr>" for n, row in lines]
    note = "Mean over the finished runs of a setting, &#177; half of Student's 95 % interval; below it the runs' own."
    return f'<h2>Figures</h2><p class="soft">{note}</p>{_table(head, rows)}'


def _interval(values: Sequence[float]) -> str:
    if not values:
        return '<span class="soft">\N{EN DASH}</span>'
    mean, half = interval(values)
    own = f"<small>{', '.join(tidy(value) for value in values)}</small>" if len(values) > 1 else ""
    return escape(plus_minus(mean, half)) + own


def _curves(found: Sequence[Group]) -> str:
    rows = {id(member): _rows(member.folder) for group in found for member in group.members}
    everything = [row for each in rows.values() for row in each]
    names = list(dict.fromkeys(name for row in everything for name in row))
    names = [name for name in names if name == "loss" or name.endswith("/loss") or name.startswith("eval/")]
    along = "images" if everything and all("images" in row for row in everything) else "step"
    drawn = []
    for name in names:
        lines = [(g.colour, [_points(rows[id(m)], along, name) for m in g.members]) for g in found]
        if any(member for _, members in lines for member in members):
            graph = family(lines, x_label="images seen" if along == "images" else "step")
            drawn.append(f"<figure><figcaption>{escape(name)}</figcaption>{graph}</figure>")
    if not drawn:
        return ""
    legend = "".join(f"<li>{_key(group)}{escape(group.label)}</li>" for group in found)
    return f'<h2>Curves</h2><ul class="legend">{legend}</ul><div class="curves">{"".join(drawn)}</div>'


def _rows(folder: Path) -> list[dict[str, Any]]:
    try:
        return read_metrics(folder / "metrics.jsonl")
    except GentkError:  # one damaged file must not hide the other runs; `gentk runs report` names the fault
        return []


def _points(rows: Sequence[Row], along: str, name: str) -> list[tuple[float, float]]:
    return [(float(row[along]), value) for row in rows if (value := number(row.get(name))) is not None]


def _samples(found: Sequence[Group]) -> str:
    shown = [
        (group, member, file) for group in found for member in group.members for file in [_last(member.folder)] if file
    ]
    if not shown:
        return ""
    pictures = [picture(file, f"{group.label}, {_seed(member)}") for group, member, file in shown[:_SHOWN]]
    more = f'<p class="soft">{len(shown) - _SHOWN} more are in the run folders.</p>' if shown[_SHOWN:] else ""
    return f'<h2>Samples</h2><div class="runs">{"".join(pictures)}</div>{more}'


def _last(folder: Path) -> Path | None:
    """The picture of the end: one that is not of a step, else the one of the last step."""
    found = sorted((folder / "samples").glob("*.png"))
    steps = [(int(m[1]), file) for file in found if (m := _STEP.fullmatch(file.stem))]
    ends = [file for file in found if not _STEP.fullmatch(file.stem)]
    return ends[0] if ends else max(steps)[1] if steps else None


def _runs(found: Sequence[Group]) -> str:
    rows = []
    for group in found:
        for member in group.members:
            seconds = number(member.info.get("seconds"))
            texts = (member.folder, member.info["status"], _seed(member), duration(seconds) if seconds else "")
            cells = "".join(f"<td>{escape(str(text))}</td>" for text in texts)
            fault = f"<td>{escape(str(member.info.get('error') or ''))}</td>"
            rows.append(f"<tr><td>{_key(group)}{escape(group.label)}</td>{cells}{fault}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("setting", "run", "status", "seed", "time", ""))
    return f"<h2>Runs</h2>{_table(head, rows)}"


def _recipes(members: Sequence[Member]) -> str:
    differ = changes([{k: v for k, v in member.recipe.items() if k not in CLAIMS} for member in members])
    if not differ or len(members) > 12:
        return ""
    head = "".join(f"<th>{escape(member.folder.name)}</th>" for member in members)
    rows = []
    for key, row in differ.items():
        cells = "".join(f"<td>{escape(_inline(value))}</td>" for value in row)
        rows.append(f"<tr><td><code>{escape(key)}</code></td>{cells}</tr>")
    return f"<h2>Recipes</h2>{_table(f'<th>key</th>{head}', rows)}"


def _inline(value: list[Any] | None) -> str:
    """A value of `changes` as a recipe writes it."""
    return "-" if value is None else yaml12.inline(value[0])


def _table(head: str, rows: Sequence[str]) -> str:
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _seed(member: Member) -> str:
    return f"seed {member.recipe.get('seed', member.info.get('seed', '?'))}"


def _key(group: Group) -> str:
    return f'<span class="key" style="background:{group.colour}"></span>'


def _colour(k: int, n: int) -> str:
    return _COLOURS[k] if n <= len(_COLOURS) else f"hsl({360 * k // n} 60% 45%)"


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _leaves(each, (*path, key))
    elif path:
        yield path, value
