"""The torch side of `evaluate compare`: the figures of two evaluations side by side, where they mean the same.

Sample k of one is paired with sample k of the other, block with block, subset with subset: what both share (the noise
that they were drawn from, the prompt, the reference) cancels in the difference, so that the interval is narrower than
those of the figures let one think. Where nothing is paired, the pairs are chance's and the interval is as wide as it
must be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL.Image import Image
from scipy.special import stdtrit

from gentk.engine import pictures
from gentk.engine.run import Job, Outcome, Run
from gentk.errors import RecipeError
from gentk.metrics.intervals import Estimate, Interval, paired_difference
from gentk.metrics.kernel import overlapping_error
from gentk.tasks.evaluate._recording import Finding, Recorded, Values, record, recorded

_LEVEL = 0.95
_YARDSTICKS = ("nfe", "ms_per_sample", "fd_halves", "nearest_test")


def execute(job: Job) -> Outcome:
    """Compares and writes. Raises MissingAsset without the evaluations, RecipeError where they do not compare."""
    recipe = job.recipe
    first, second = (recorded(Path(ref).expanduser()) for ref in (recipe.samples, recipe.method.against))
    names = [name for name in first.result["figures"] if name in second.result["figures"] and _is_figure(name, first)]
    if not names:
        raise RecipeError(f"`{recipe.samples}` and `{recipe.method.against}` have no figure in common")
    if faults := list(_unlike(first.result["comparable"], second.result["comparable"])):
        shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise RecipeError(
            f"`{recipe.samples}` and `{recipe.method.against}` do not compare: {shown}",
            hint="evaluate both by one protocol, against one reference, with one N",
        )
    if job.dry_run:
        return Outcome("planned", answer=f"differences in {', '.join(names)}, in {job.out}")
    files = {str(each.folder): each.folder / "result.json" for each in (first, second)}
    return record(job, files, lambda run: _compare(run, names, first, second))


def _compare(run: Run, names: list[str], first: Recorded, second: Recorded) -> Finding:
    figures: dict[str, float] = {}
    lines, drawn = [], []
    for name in names:
        a, b = (each.result["figures"][name] for each in (first, second))
        found, how = _difference(name, first, second, run)
        figures |= {name: a, f"{name}_against": b, f"{name}_difference": a - b}
        line = f"{name} {a:.5g} - {b:.5g} = {a - b:.3g}"
        if found is not None:
            figures |= {f"{name}_low": found.low, f"{name}_high": found.high}
            line += f" [{found.low:.3g}, {found.high:.3g}] (95 %, {how})"
            drawn.append((name, found))
        lines.append(f"{line}, N = {first.result['n']} each")
    shown = {"differences": _picture(drawn)} if drawn else {}
    return Finding(
        figures, lines, first.result["n"], facts={"of": [str(first.folder), str(second.folder)]}, pictures=shown
    )


def _difference(name: str, first: Recorded, second: Recorded, run: Run) -> tuple[Interval | None, str]:
    """The interval of a figure's difference and how it was had; None where the evaluations keep nothing to tell."""
    a, b = (each.result["figures"][name] for each in (first, second))
    x, y = first.values.get(name), second.values.get(name)
    if x is None or y is None:
        errors = [each.result["figures"].get(f"{name}_error") for each in (first, second)]
        if None in errors:
            return None, ""
        return Estimate(a - b, math.hypot(*errors)).interval(_LEVEL), "not paired"
    if len(x.values) != len(y.values) or not bool((x.values.isfinite() & y.values.isfinite()).all()):
        return None, ""
    if x.unit in ("sample", "prompt"):
        resamples, seed = run.job.recipe.method.resamples, run.job.recipe.seed
        found = paired_difference(x.values, y.values, resamples=resamples, level=_LEVEL, seed=seed)
        return found, f"paired {x.unit}s, bootstrap"
    error = _error(x, y)
    if math.isnan(error):
        return None, ""
    # Blocks and splits are few: Student's t. The subsets' error comes from a model of their overlap, not from counting.
    reach = Estimate(0.0, error).interval(_LEVEL).high
    if x.unit != "subset":
        reach = float(stdtrit(len(x.values) - 1, 0.5 + _LEVEL / 2)) * error
    return Interval(a - b, a - b - reach, a - b + reach), f"paired {x.unit}s"


def _error(x: Values, y: Values) -> float:
    """Standard error of the difference of two figures from the differences of their blocks, splits or subsets."""
    differences = x.values - y.values
    if len(differences) < 2:
        return math.nan
    if x.unit == "subset":
        return overlapping_error(differences, x.shared)
    return float(differences.std()) / math.sqrt(len(differences))


def _is_figure(name: str, of: Recorded) -> bool:
    """Whether `name` is a figure of the samples, and not a yardstick or the error, spread or end of another figure."""
    stem, _, last = name.rpartition("_")
    beside = last in ("error", "std", "spread", "low", "high") and stem in of.result["figures"]
    return not beside and name not in _YARDSTICKS


def _unlike(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """What differs between two mappings, at any depth, in words."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            yield from _unlike(a.get(key), b.get(key), f"{place}.{key}" if place else str(key))
    elif a != b:
        yield f"{place} is {a} in one and {b} in the other"


def _picture(drawn: list[tuple[str, Interval]]) -> Image:
    """The differences in units of their intervals' half-widths: one that does not reach 0 is not chance's."""

    def draw(axes: Any) -> None:
        for row, (_, found) in enumerate(drawn):
            half = max((found.high - found.low) / 2, 1e-300)
            low, high = found.low / half, found.high / half
            axes.plot([low, high], [row, row], color=pictures.INK, lw=2)
            axes.plot([found.value / half], [row], "o", color=pictures.INK)
        axes.axvline(0, color="#71717a", lw=1)
        axes.set(ylim=(len(drawn) - 0.5, -0.5), xlabel="difference in half-widths of its 95 % interval")
        axes.set_yticks(range(len(drawn)), [name for name, _ in drawn])

    return pictures.chart(draw, height=90 + 40 * len(drawn))
