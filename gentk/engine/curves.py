"""One curve as an inline SVG that takes its colours from the page around it. The standard library only.

Not matplotlib: these drawings are a tenth of the size, follow light and dark, and keep their text selectable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 38
_BUCKETS = 240
"""Most places along x at which a curve is drawn: more cannot be told apart at this width."""


def svg(points: Sequence[tuple[float, float]], *, x_label: str, levels: Sequence[tuple[str, float]] = ()) -> str:
    """The curve through `points` (x, y), finite, at least one, in order of x, as an `<svg>` element. x starts at 0.

    Few points are marked one by one. Many are drawn as a faint line that keeps every spike, under their running mean.
    y is logarithmic where the values are positive and span more than a factor of 30. `levels` are (name, y) drawn as
    dashed lines, the figures to compare with. The page's CSS gives the classes `axis grid raw curve dot level` colours.
    """
    low_x, high_x = min(0.0, points[0][0]), points[-1][0]
    values = [y for _, y in points] + [y for _, y in levels]
    logarithmic = min(values) > 0 and max(values) > 30 * min(values)
    to_x = _scale(*_widened(low_x, high_x, 0.0), _LEFT, _WIDTH - _RIGHT)
    forward: Callable[[float], float] = math.log10 if logarithmic else float
    low, high = _widened(forward(min(values)), forward(max(values)), 0.06)
    to_y = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    placed = [(to_x(x), to_y(forward(y))) for x, y in points]
    y_ticks = _log_ticks(low, high) if logarithmic else _ticks(low, high, 5)
    parts = [_y_tick(to_y(forward(value)), value) for value in y_ticks]
    parts += [_x_tick(to_x(value), value) for value in _ticks(low_x, high_x, 6)]
    end = f'x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end"'
    parts.append(f'<text class="axis" {end}>{escape(x_label)}</text>')
    parts += [_level(to_y(forward(value)), name) for name, value in levels]
    if len(placed) <= 40:
        parts.append(_path("curve", placed))
        parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in placed]
    else:
        parts.append(_path("raw", _thinned(placed)))
        parts.append(_path("curve", _running_mean(placed)))
    scale = "logarithmic" if logarithmic else "linear"
    label = f"{len(points)} values from {compact(values[0])} to {compact(points[-1][1])}, {scale} scale"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def family(lines: Sequence[tuple[str, Sequence[Sequence[tuple[float, float]]]]], *, x_label: str) -> str:
    """Several curves in one frame, as an `<svg>` element: (colour, members), each a list of points as `svg` takes them.

    Members are drawn thin, and their mean over the x that all of them have in full; many points as a running mean. y is
    logarithmic where the values are positive and span more than a factor of 30. At least one member has a point.
    """
    drawn = [(colour, [list(m) for m in members if m]) for colour, members in lines]
    everything = [point for _, members in drawn for member in members for point in member]
    values = [y for _, y in everything]
    logarithmic = min(values) > 0 and max(values) > 30 * min(values)
    forward: Callable[[float], float] = math.log10 if logarithmic else float
    low_x, high_x = min(0.0, *(x for x, _ in everything)), max(x for x, _ in everything)
    to_x = _scale(*_widened(low_x, high_x, 0.0), _LEFT, _WIDTH - _RIGHT)
    low, high = _widened(forward(min(values)), forward(max(values)), 0.06)
    to_y = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    y_ticks = _log_ticks(low, high) if logarithmic else _ticks(low, high, 5)
    parts = [_y_tick(to_y(forward(value)), value) for value in y_ticks]
    parts += [_x_tick(to_x(value), value) for value in _ticks(low_x, high_x, 6)]
    end = f'x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end"'
    parts.append(f'<text class="axis" {end}>{escape(x_label)}</text>')
    for kind in ("thin", "curve"):  # the means above all members
        for colour, members in drawn:
            for member in members if kind == "thin" and len(members) > 1 else _mean(members) if kind == "curve" else ():
                placed = [(to_x(x), to_y(forward(y))) for x, y in member]
                placed = _running_mean(placed) if len(placed) > 40 else placed
                parts.append(_path(kind, placed).replace("/>", f' style="stroke:{colour}"/>'))
                if len(placed) <= 40 and kind == "curve":
                    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
    count = sum(len(members) for _, members in drawn)
    label = f"{count} curves, {'logarithmic' if logarithmic else 'linear'} scale"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _mean(members: Sequence[Sequence[tuple[float, float]]]) -> list[list[tuple[float, float]]]:
    """The mean curve over the x that every member has; none where they share no x."""
    tables = [dict(member) for member in members]
    shared = [x for x in (tables[0] if tables else ()) if all(x in table for table in tables)]
    return [[(x, sum(table[x] for table in tables) / len(tables)) for x in shared]] if shared else []


def compact(value: float) -> str:
    """A short label for an axis: 0.002, 12, 50k, 1.5M, 2e-7."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:.4g}{unit}"
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.4g}"
    mantissa, _, power = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    """A range that is never empty: a constant curve lies in its middle."""
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = abs(low) / 2 or 1.0
        return low - room, high + room
    return low - share * (high - low), high + share * (high - low)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], `about` as many as asked."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * power for unit in (1, 2, 5, 10) if unit * power >= rough * 0.8)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within [10^low, 10^high]; also 2 and 5 times them where there are few."""
    first, last = max(math.floor(low), -300), min(math.ceil(high), 300)  # what a float can hold
    units = (1.0, 2.0, 5.0) if high - low < 2.5 else (1.0,)
    stride = max(1, round((high - low) / 6))
    found = [unit * 10.0**power for power in range(first, last + 1, stride) for unit in units]
    return [value for value in found if low <= math.log10(value) <= high]


def _y_tick(y: float, value: float) -> str:
    line = f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + f'<text class="axis" x="{_LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{compact(value)}</text>'


def _x_tick(x: float, value: float) -> str:
    bottom = _HEIGHT - _BOTTOM
    line = f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
    return line + f'<text class="axis" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{compact(value)}</text>'


def _level(y: float, name: str) -> str:
    line = f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return line + f'<text class="axis" x="{_WIDTH - _RIGHT}" y="{y - 4:.1f}" text-anchor="end">{escape(name)}</text>'


def _path(kind: str, placed: Sequence[tuple[float, float]]) -> str:
    return f'<path class="{kind}" d="M' + "L".join(f"{x:.1f},{y:.1f}" for x, y in placed) + '"/>'


def _thinned(placed: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lowest and the highest point of every bucket, and both ends: thinning must not hide a spike."""
    if len(placed) <= 2 * _BUCKETS:
        return list(placed)
    kept: list[tuple[float, float]] = []
    for start, end in pairwise(_edges(len(placed), _BUCKETS)):
        bucket = range(start, end)
        ends = {min(bucket, key=lambda k: placed[k][1]), max(bucket, key=lambda k: placed[k][1])}
        kept += [placed[k] for k in sorted(ends)]
    return [placed[0], *kept, placed[-1]]


def _running_mean(placed: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over a window of a fifteenth of the curve, in the drawing's own (perhaps logarithmic) height."""
    sums = [0.0]
    for _, y in placed:
        sums.append(sums[-1] + y)
    reach = max(1, len(placed) // 30)
    means = []
    for k in _edges(len(placed) - 1, min(_BUCKETS, len(placed) - 1)):
        reach_here = min(reach, k, len(placed) - 1 - k)  # symmetric at the ends too, or the curve would lag there
        first, last = k - reach_here, k + reach_here + 1
        means.append((placed[k][0], (sums[last] - sums[first]) / (last - first)))
    return means


def _edges(n: int, parts: int) -> list[int]:
    return [n * k // parts for k in range(parts + 1)]
