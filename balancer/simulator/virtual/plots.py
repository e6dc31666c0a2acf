"""Three plots as SVG: ratios with intervals, curves, bars. Narrow enough for a telephone, coloured by the
page's style sheet alone, each with a title and a description for those who do not see it.

Why not a library: pygal 3.1 draws no intervals, writes a script, today's date and a random identity into
each plot and fixes its colours; leather 0.4 draws neither logarithmic scales nor intervals. A report must be
the same bytes for the same seeds, and follow light and dark.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from balancer.simulator.virtual.markup import element

WIDTH = 360
_EDGE = 10
_LINE = 34
_AXIS = 24
_CURVES_HEIGHT = 250
_LEFT = 46
_TICKS = 6
SERIES = 12
"""So many styles of lines there are: six colours, solid and dashed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a plot: its label, what is written beside it, a value and the ends of its interval (NaN
    where there is none)."""

    label: str
    told: str
    value: float
    low: float = math.nan
    high: float = math.nan
    mark: str = ""
    """A class of the style sheet."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through points, both coordinates above 0; `series` numbers its style."""

    label: str
    series: int
    points: Sequence[tuple[float, float]]


class _Log:
    """A logarithmic axis over some values above 0, from `start` to `end` in pixels."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        good = [each for each in values if 0 < each < math.inf] or [1.0]
        least, most = min(good), max(good)
        if most < least * 1.5:
            least, most = least / 1.3, most * 1.3
        self.least, self.most = least, most
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        """Where a value is; beyond the ends at the end."""
        inside = min(max(value, self.least), self.most)
        share = math.log(inside / self.least) / math.log(self.most / self.least)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round numbers within, at most six."""
        span = self.most - self.least
        if self.most / self.least < 5:
            step = next(each for each in _round_numbers(span / 10, span) if span / each < 6)
            return [each * step for each in range(math.ceil(self.least / step), int(self.most / step) + 1)]
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [each for each in _round_numbers(self.least, self.most, steps) if each <= self.most]
            if len(found) <= _TICKS:
                return found
        return found[:: math.ceil(len(found) / _TICKS)]


def _round_numbers(least: float, most: float, steps: Sequence[int] = (1, 2, 5)) -> list[float]:
    """Those from the least up to the first decade beyond the most."""
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    found = [step * 10.0**decade for decade in decades for step in steps]
    return [each for each in found if each >= least]


def intervals(title: str, description: str, rows: Sequence[Row]) -> Element:
    """A dot and the interval around it for each row, on a logarithmic scale with 1 marked. What is 0 or
    infinite stands at the edge as an arrow; what does not exist has no dot."""
    axis = _Log(
        [1.0, *(each for row in rows for each in (row.value, row.low, row.high))], _EDGE, WIDTH - _EDGE
    )
    height = len(rows) * _LINE + _AXIS
    drawn = []
    for index, row in enumerate(rows):
        y = index * _LINE + 24
        drawn += _labels(row, index)
        drawn.append(_line("unity", axis.at(1), y - 7, axis.at(1), y + 7))
        if not math.isnan(row.low):
            drawn.append(_line(f"interval {row.mark}", axis.at(row.low), y, axis.at(row.high), y))
        if not math.isnan(row.value):
            drawn.append(_dot(row, axis.at(row.value), y))
    return _plot(title, description, height, [*drawn, *_bottom(axis, height, "{:g}".format)])


def bars(title: str, description: str, rows: Sequence[Row]) -> Element:
    """A bar from 0 for each row, and the interval at its end."""
    values = [each for row in rows for each in (row.value, row.high) if not math.isnan(each)]
    scale = (WIDTH - 2 * _EDGE) / (max(values, default=0) or 1)
    drawn = []
    for index, row in enumerate(rows):
        y = index * _LINE + 18
        drawn += _labels(row, index)
        if not math.isnan(row.value):
            drawn.append(
                element("rect", class_=f"bar {row.mark}", x=_EDGE, y=y, width=row.value * scale, height=10)
            )
        if not math.isnan(row.low):
            ends = (_EDGE + row.low * scale, _EDGE + row.high * scale)
            drawn.append(_line("interval", ends[0], y + 5, ends[1], y + 5))
    return _plot(title, description, len(rows) * _LINE + 4, drawn)


def curves(title: str, description: str, lines: Sequence[Curve], x_label: str, y_label: str) -> Element:
    """Lines over two logarithmic axes."""
    points = [point for line in lines for point in line.points]
    bottom = _CURVES_HEIGHT - 40
    across = _Log([x for x, _ in points], _LEFT, WIDTH - _EDGE)
    up = _Log([y for _, y in points], bottom, 8)
    drawn = []
    for tick in up.ticks():
        drawn.append(_line("grid", _LEFT, up.at(tick), WIDTH - _EDGE, up.at(tick)))
        drawn.append(_words(f"{tick * 100:g} %", _LEFT - 4, up.at(tick) + 4, "end"))
    for line in lines:
        path = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in line.points)
        drawn.append(
            element(
                "polyline",
                element("title", line.label),
                class_=f"series s{line.series % SERIES}",
                points=path,
            )
        )
    drawn += _bottom(across, bottom + _AXIS, _seconds)
    drawn.append(_words(x_label, WIDTH - _EDGE, _CURVES_HEIGHT - 3, "end"))
    drawn.append(_words(y_label, _LEFT, _CURVES_HEIGHT - 3, "start"))
    return _plot(title, description, _CURVES_HEIGHT, drawn)


def swatch(series: int) -> Element:
    """A piece of a curve, for a legend; it says nothing to those who do not see it."""
    stroke = element("line", class_=f"series s{series % SERIES}", x1=0, y1=5, x2=28, y2=5)
    return element("svg", stroke, viewBox="0 0 28 10", width=28, height=10, aria_hidden="true")


def _plot(title: str, description: str, height: float, drawn: Sequence[Element]) -> Element:
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *drawn,
        class_="plot",
        role="img",
        viewBox=f"0 0 {WIDTH} {height}",
        aria_label=f"{title}. {description}",
    )


def _labels(row: Row, index: int) -> list[Element]:
    y = index * _LINE + 13
    return [_words(row.label, 0, y, "start"), _words(row.told, WIDTH, y, "end", class_="value")]


def _dot(row: Row, x: float, y: float) -> Element:
    if row.value == 0:
        return element("path", class_=f"dot {row.mark}", d=f"M{x - 8:.1f} {y}l9 -5v10z")
    if math.isinf(row.value):
        return element("path", class_=f"dot {row.mark}", d=f"M{x + 8:.1f} {y}l-9 -5v10z")
    return element("circle", class_=f"dot {row.mark}", cx=x, cy=y, r=4.5)


def _bottom(axis: _Log, height: float, spell: Callable[[float], str]) -> list[Element]:
    """The ticks of the axis at the bottom."""
    y = height - _AXIS
    drawn = [_line("axis", axis.at(axis.least), y, axis.at(axis.most), y)]
    for tick in axis.ticks():
        drawn.append(_line("axis", axis.at(tick), y, axis.at(tick), y + 4))
        drawn.append(_words(spell(tick), axis.at(tick), y + 16, "middle"))
    return drawn


def _line(class_: str, x1: float, y1: float, x2: float, y2: float) -> Element:
    return element("line", class_=class_.strip(), x1=x1, y1=y1, x2=x2, y2=y2)


def _words(text: str, x: float, y: float, anchor: str, **attributes: str) -> Element:
    return element("text", text, x=x, y=y, text_anchor=anchor, **attributes)


def _seconds(value: float) -> str:
    return f"{value * 1000:g} ms" if value < 1 else f"{value:g} s"
