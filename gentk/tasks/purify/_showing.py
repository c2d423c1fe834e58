"""What a purify run shows: its table, its red flags in plain words, images side by side, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image

from gentk.engine import pictures
from gentk.metrics.intervals import Interval
from gentk.metrics.robustness import Flag, Scores, accuracy
from gentk.tasks.purify._bench import Bench, seeds

if TYPE_CHECKING:
    from gentk.tasks.purify._measuring import Findings

_SHOWN = 16  # images side by side
_ALONG = {"eps": "eps", "eot": "draws per gradient (EOT)", "steps": "steps of the attack", "t_star": "noise level t*"}


def percent(share: float) -> str:
    """A share as 41.0 %."""
    return f"{100 * share:.1f} %"


def table(found: Findings, level: float) -> dict[str, Any]:
    """Rows of accuracies by rule, with intervals: `head` and `rows` of texts."""
    rules = list(found.clean.scores)
    rows = [["clean", "", *_cells(found.clean.scores, rules, level), ""]]
    for row in found.rows:
        by = row.made
        seconds = f"{by.seconds:.0f}" if by else ""
        rows.append([row.name, by.knowledge if by else "", *_cells(row.scores, rules, level), seconds])
    if found.rows:
        rows.append(["minimum", "all of them", *_cells(found.least, rules, level), ""])
    return {"head": ["attack", "knows", *rules, "seconds"], "rows": rows}


def _cells(by_rule: Scores, rules: Sequence[str], level: float) -> list[str]:
    found = []
    for rule in rules:
        value, low, high = (100 * each for each in accuracy(by_rule[rule], level=level))
        found.append(f"{value:.1f} [{low:.1f}, {high:.1f}]")
    return found


def remarks(
    recipe: Any, found: Findings, raised: Sequence[Flag], *, adaptive: bool, random: bool
) -> list[dict[str, str]]:
    """What a reader must know, in sentences; `kind` is `flag` for what makes a figure untrustworthy, else `note`."""
    said = [{"kind": "note" if flag.answered else "flag", "words": _sentence(flag.words)} for flag in raised]
    if found.rows and not adaptive and recipe.method.name != "none":
        words = "No attack here knew the purifier's gradient: non-adaptive figures say nothing of robustness."
        said.append({"kind": "flag", "words": words})
    blind = found.bare.get("blind")
    if blind is not None and blind > 0.1 and recipe.method.name != "none":
        words = (
            f"The bare classifier keeps {percent(blind)} under the same blind attack: it was trained to, or the attack "
            "is too weak here (raise attack.steps or threat.eps)."
        )
        said.append({"kind": "note", "words": words})
    known = next((row for row in found.rows if row.known is not None), None)
    if known is not None and random:
        fresh = float(known.scores["average"].mean())
        words = (
            f"An attacker who knows the noise leaves {percent(known.known or 0.0)} on it, {percent(fresh)} on fresh "
            "noise: the difference is what randomness hides, not what it removes."
        )
        said.append({"kind": "note", "words": words})
    for row in found.rows:
        library = row.made.facts.get("library") if row.made else None
        if row.made and library:
            asked = ", ".join(f"{k} {row.made.facts[k]}" for k in ("version", "steps", "eot") if k in row.made.facts)
            words = f"{row.name} is that of {library}{asked and ': '}{asked}; its gradient is {row.made.knowledge}."
            said.append({"kind": "note", "words": _sentence(words)})
        spared = row.made.facts.get("left_as_broken", 0) if row.made else 0
        if spared:
            tried, n = len(row.right) - spared, len(row.right)
            words = (
                f"{row.name} was run on {tried} of {n} images: the rest stood as earlier attacks had left it, wrong "
                "on every draw; no minimum changes by that."
            )
            said.append({"kind": "note", "words": _sentence(words)})
    for name, why in found.missing.items():
        said.append({"kind": "note", "words": _sentence(f"the attack {name} was not run: {why}")})
    if recipe.method.name == "purify-pp":
        said.append({"kind": "note", "words": "Purify++-style: the paper's own parametrisation is not public."})
    if found.rows:
        said.append({"kind": "note", "words": "Accuracies are upper bounds: a better attack can only lower them."})
    return said


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}" + ("" if words.endswith(".") else ".")


def answer(shown: Mapping[str, Any], said: Sequence[Mapping[str, str]]) -> str:
    """The table and the remarks as plain text."""
    lines = [shown["head"], *shown["rows"]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown["head"]))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, *(("! " if s["kind"] == "flag" else "- ") + s["words"] for s in said)])


def drawn(recipe: Any, bench: Bench, found: Findings) -> dict[str, Image]:
    """Clean, adversarial and purified images side by side, and a chart per curve."""
    shown = {}
    few = bench.first(_SHOWN)
    tape = few.victim.tape(few.ids, seeds(recipe).scoring)
    panels = {"clean": few.x, "clean, purified": few.victim.purify(few.x, tape)}
    by_average = {row.name: float(row.scores["average"].mean()) for row in found.rows}
    strongest = min(by_average, key=lambda name: by_average[name], default=None)
    for row in found.rows:
        if row.made is not None and row.name == strongest:
            x = row.made.x[: len(few)].to(few.x)
            panels |= {f"attacked: {row.name}": x, "attacked, purified": few.victim.purify(x, tape)}
    shown["images"] = pictures.side_by_side({name: _bytes(x) for name, x in panels.items()})
    for key, points in found.curves.items():
        if key in _ALONG and len(points) > 1:
            clean = found.curves.get(f"{key}, clean", [])
            shown[f"accuracy-over-{key.replace('_', '-')}"] = _chart(_ALONG[key], points, clean)
    return shown


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] rounded to bytes, for the eye only."""
    return (x.cpu() * 255).round().clamp(0, 255).to(torch.uint8)


def _chart(along: str, points: Sequence[tuple[float, Interval]], clean: Sequence[tuple[float, Interval]]) -> Image:
    def draw(axes: Any) -> None:
        for name, series, line in (("clean", clean, "--"), ("attacked", points, "-")):
            if series:
                x = [value for value, _ in series]
                low, middle, high = ([100 * getattr(i, k) for _, i in series] for k in ("low", "value", "high"))
                axes.fill_between(x, low, high, color=pictures.INK, alpha=0.12, linewidth=0)
                axes.plot(x, middle, line, marker="o", markersize=4, color=pictures.INK, label=name)
        axes.set(xlabel=along, ylabel="right, %", ylim=(0, 102))
        if clean:
            axes.legend(frameon=False, fontsize=8)

    return pictures.chart(draw)
