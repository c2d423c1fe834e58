"""Curves place every value where its axis says, keep spikes, and choose the scale that can be read."""

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from gentk.engine.curves import compact, svg


def drawn(points, **options):
    return ET.fromstring(svg(points, x_label="images seen", **options))


def path(root, kind):
    (found,) = (each for each in root.iter("path") if each.get("class") == kind)
    return np.array([[float(v) for v in pair.split(",")] for pair in found.get("d")[1:].split("L")])


def ticks(root, anchor):
    """Position -> value of the labels of an axis: `end` for y, `middle` for x."""
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    found = {}
    for each in root.iter("text"):
        if each.get("text-anchor") == anchor and re.fullmatch(r"-?[\d.]+(e-?\d+)?[kMG]?", each.text):
            number = float(each.text.rstrip("kMG")) * units.get(each.text[-1], 1)
            found[number] = float(each.get("y")) - 3.5 if anchor == "end" else float(each.get("x"))
    return found


def test_few_points_are_marked_and_lie_where_the_axes_say():
    root = drawn([(0, 2.0), (1000, 8.0), (4000, 5.0)])
    y, x = ticks(root, "end"), ticks(root, "middle")
    assert len(y) >= 3
    assert len(x) >= 3
    dots = [(float(each.get("cx")), float(each.get("cy"))) for each in root.iter("circle")]
    for (along, value), dot in zip([(0, 2.0), (1000, 8.0), (4000, 5.0)], dots, strict=True):
        assert dot[0] == pytest.approx(np.interp(along, list(x), list(x.values())), abs=0.2)
        slope, offset = np.polyfit(list(y), list(y.values()), 1)
        assert dot[1] == pytest.approx(slope * value + offset, abs=0.2)
    assert dots[1][1] < dots[2][1] < dots[0][1], "larger values are higher up"


def test_values_over_decades_get_a_logarithmic_axis():
    root = drawn([(k, 10.0**-k) for k in range(5)])
    y = ticks(root, "end")
    assert {1, 0.1, 0.01, 0.001, 1e-4} <= set(y)
    heights = path(root, "curve")[:, 1]
    assert np.ptp(np.diff(heights)) <= 0.21, "equal ratios, equal distances"


@pytest.mark.parametrize("values", [[1.0, 2.0, 29.0], [-1.0, 100.0, 3.0], [0.0, 100.0, 3.0]])
def test_other_values_get_a_linear_axis(values):
    root = drawn(list(enumerate(values)))
    y = ticks(root, "end")
    slope, offset = np.polyfit(list(y), list(y.values()), 1)
    assert path(root, "curve")[:, 1] == pytest.approx([slope * value + offset for value in values], abs=0.2)


def test_many_points_are_thinned_without_losing_a_spike():
    points = [(float(k), 1.0 + 0.1 * math.sin(k)) for k in range(20_000)]
    points[12_345] = (12_345.0, 9.0)
    root = drawn(points)
    raw = path(root, "raw")
    assert len(raw) <= 482
    assert raw[:, 1].min() < 40 < np.delete(raw[:, 1], raw[:, 1].argmin()).min()
    assert len(svg(points, x_label="")) < 20_000


def test_the_mean_runs_through_the_middle_from_end_to_end():
    rng = np.random.default_rng(0)
    line = np.linspace(5.0, 6.0, 2000)
    root = drawn(list(enumerate(line + rng.normal(0, 0.2, 2000))))
    mean, raw = path(root, "curve"), path(root, "raw")
    assert mean[0, 0] == raw[0, 0]
    assert mean[-1, 0] == raw[-1, 0]
    y = ticks(root, "end")
    slope, offset = np.polyfit(list(y), list(y.values()), 1)
    wanted = slope * np.interp(mean[:, 0], mean[[0, -1], 0], [5.0, 6.0]) + offset
    # A window of 2 * 66 + 1 values has a standard error of 0.2 / sqrt(133) = 0.017; 6 of them, away from the ends.
    assert np.abs(mean[10:-10, 1] - wanted[10:-10]).max() < 6 * 0.017 * abs(slope)
    assert np.abs(raw[:, 1] - np.interp(raw[:, 0], mean[:, 0], wanted)).max() > 0.4 * abs(slope)


@pytest.mark.parametrize("points", [[(5, 3.0)], [(0, 0.0)], [(k, 7.0) for k in range(100)], [(0, 1e-300), (1, 1e300)]])
def test_degenerate_curves_are_drawn(points):
    root = drawn(points)
    numbers = re.findall(r"nan|inf", ET.tostring(root, "unicode"))
    assert not numbers
    for x, y in path(root, "curve"):
        assert 0 <= x <= 420
        assert 0 <= y <= 230


def test_levels_to_compare_with_are_inside_the_axes():
    root = drawn([(0, 5.0), (1, 4.0)], levels=[("paper <1>", 2.0)])
    (line,) = (each for each in root.iter("line") if each.get("class") == "level")
    assert path(root, "curve")[:, 1].max() < float(line.get("y1")) < 200
    assert any(each.text == "paper <1>" for each in root.iter("text"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.002, "0.002"),
        (12, "12"),
        (50_000, "50k"),
        (1.5e6, "1.5M"),
        (-2e3, "-2k"),
        (2e-7, "2e-7"),
        (3e12, "3e12"),
    ],
)
def test_compact(value, text):
    assert compact(value) == text
