"""What came of a run: tables, ratios and goals, for a terminal and as a page of the documents."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tests.benchmarks.rounds import Plan, Results

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
_US, _MS, _RATE, _SHARE = "{:.1f}", "{:.2f}", "{:,.0f}", "{:.0%}"


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a measure, or how many times that of another proxy in the same round."""

    figure: str
    title: str
    form: str
    other: str = ""

    def values(self, results: Results, measure: str, proxy: str) -> list[float]:
        """Of every round; empty where something was not measured."""
        own = results.series(measure, proxy, self.figure)
        if not self.other:
            return own
        return [
            _times(*each) for each in zip(own, results.series(measure, self.other, self.figure), strict=False)
        ]


COLUMNS = {
    "unary": (
        Column("cpu_us", "CPU µs a request", _US),
        Column("cpu_us", "times nginx's", "{:.2f}", "nginx"),
        Column("per_second", "requests/s", _RATE),
        Column("p50_ms", "p50 ms", _MS),
        Column("p99_ms", "p99 ms", _MS),
        Column("proxy_share", "its core", _SHARE),
    ),
    "few": (Column("per_second", "requests/s", _RATE), Column("proxy_share", "its core", _SHARE)),
    "one": (Column("p50_ms", "p50 ms", "{:.3f}"), Column("p99_ms", "p99 ms", "{:.3f}")),
    "streams": (
        Column("cpu_us", "CPU µs a chunk", _US),
        Column("cpu_us", "times nginx's", "{:.2f}", "nginx"),
        Column("cpu_us", "times the relay's", "{:.2f}", "relay"),
        Column("per_second", "chunks/s", _RATE),
        Column("segments_per_chunk", "segments a chunk", "{:.3f}"),
        Column("reads_per_chunk", "its reads a chunk", "{:.3f}"),
        Column("writes_per_read", "its writes a read", "{:.3f}"),
        Column("delay_p50_ms", "delay p50 ms", _MS),
        Column("delay_p99_ms", "delay p99 ms", _MS),
        Column("proxy_share", "its core", _SHARE),
    ),
    "crowd": (
        Column("alone_p99_ms", "p99 ms alone", _MS),
        Column("among_p99_ms", "p99 ms among them", _MS),
        Column("times", "times", "{:.2f}"),
    ),
    "memory": (Column("kib_per_stream", "private KiB a stream", _US),),
    "bounded": (
        Column("survived", "lived", "{:.0f}"),
        Column("peak_mib", "most MiB held", "{:.0f}"),
        Column("answered", "answered", "{:.0f}"),
        Column("refused", "refused", "{:.0f}"),
        Column("cut", "cut", "{:.0f}"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A figure of the balancer against another's of the same round, or alone."""

    about: str
    measure: str
    figure: str
    limit: float
    other: str = ""
    other_measure: str = ""
    compare: Callable[[float, float], float] = lambda own, _: own
    least: bool = False
    always: bool = False
    """In every round; otherwise by the median."""
    form: str = "{:.2f}"


def _times(own: float, other: float) -> float:
    return own / other if other else math.inf


def _above(own: float, other: float) -> float:
    return own - other


GOALS = (
    Goal(
        about="CPU of a chunk, times the relay's",
        measure="streams",
        figure="cpu_us",
        other="relay",
        compare=_times,
        limit=1.35,
    ),
    Goal(
        about="CPU of a chunk, times nginx's",
        measure="streams",
        figure="cpu_us",
        other="nginx",
        compare=_times,
        limit=1.4,
    ),
    Goal(
        about="writes for each read",
        measure="streams",
        figure="writes_per_read",
        limit=0.9,
        least=True,
    ),
    Goal(
        about="segments at the clients for each chunk",
        measure="streams",
        figure="segments_per_chunk",
        limit=0.9,
        least=True,
    ),
    Goal(
        about="delay of a chunk, p99, ms over the relay's",
        measure="streams",
        figure="delay_p99_ms",
        other="relay",
        compare=_above,
        limit=2.0,
    ),
    Goal(
        about="CPU of a request, times nginx's",
        measure="unary",
        figure="cpu_us",
        other="nginx",
        compare=_times,
        limit=6.0,
    ),
    Goal(
        about="requests/s, times LiteLLM's",
        measure="unary",
        figure="per_second",
        other="litellm",
        compare=_times,
        limit=30.0,
        least=True,
    ),
    Goal(
        about="requests/s, times LiteLLM's with few connections",
        measure="unary",
        figure="per_second",
        other="litellm",
        other_measure="few",
        compare=_times,
        limit=30.0,
        least=True,
    ),
    Goal(
        about="p50 of one connection, ms over nginx's",
        measure="one",
        figure="p50_ms",
        other="nginx",
        compare=_above,
        limit=0.3,
    ),
    Goal(
        about="private memory of an idle stream, KiB",
        measure="memory",
        figure="kib_per_stream",
        limit=40.0,
        form="{:.1f}",
    ),
    Goal(
        about="lives within the memory bound (1: yes), every time",
        measure="bounded",
        figure="survived",
        limit=1.0,
        least=True,
        always=True,
        form="{:.0f}",
    ),
    Goal(about="p99 of others among bad clients, times alone", measure="crowd", figure="times", limit=2.0),
)


@dataclass(frozen=True, slots=True)
class Reached:
    """A goal and what came of it in each round."""

    goal: Goal
    values: tuple[float, ...]

    @property
    def met(self) -> bool:
        counts = self.values if self.goal.always else [statistics.median(self.values)]
        return all(each >= self.goal.limit if self.goal.least else each <= self.goal.limit for each in counts)


def goals(results: Results, proxy: str = "balancer") -> list[Reached]:
    """The goals for which everything was measured."""
    reached = []
    for goal in GOALS:
        own = results.series(goal.measure, proxy, goal.figure)
        other = results.series(goal.other_measure or goal.measure, goal.other, goal.figure)
        if own and (other or not goal.other):
            pairs = zip(own, other or own, strict=True)
            reached.append(Reached(goal, tuple(goal.compare(one, two) for one, two in pairs)))
    return reached


def plain(plan: Plan, results: Results) -> str:
    """The tables with their columns in line."""
    lines: list[str] = []
    for title, rows in _tables(plan, results):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", title]
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join((*lines, "", *_notes(plan, results)))


def markdown(plan: Plan, results: Results, command: str) -> str:
    """What `page` puts between its marks."""
    parts = [f"Made by `{command}`, {results.rounds} rounds.\n"]
    for title, (head, *rows) in _tables(plan, results):
        table = [head, ["---"] * len(head), *rows]
        parts.append("\n".join((f"## {title}\n", *("| " + " | ".join(row) + " |" for row in table))) + "\n")
    parts.append("## How far to trust this\n\n" + "\n".join(f"* {each}" for each in _notes(plan, results)))
    return "\n".join(parts) + "\n"


def page(before: str, figures: str) -> str:
    """The page with these figures in place of those between its two marks. Raises ValueError where it has
    no marks."""
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no line {BEGIN} with a line {END} after it")
    return f"{head}{begin}\n\n{figures}\n{end}{tail}"


def _tables(plan: Plan, results: Results) -> Iterator[tuple[str, list[list[str]]]]:
    for proxy in plan.proxies:
        if proxy.own and (reached := goals(results, proxy.name)):
            rows = [
                [
                    each.goal.about,
                    f"at {'least' if each.goal.least else 'most'} {each.goal.limit:g}",
                    _spread(each.values, each.goal.form),
                    "met" if each.met else "not met",
                ]
                for each in reached
            ]
            yield f"The goals of: {proxy.name}", [["figure", "goal", "measured", ""], *rows]
    for measure in plan.measures:
        columns = COLUMNS[measure.name]
        rows = [
            [
                proxy.name,
                *(_spread(each.values(results, measure.name, proxy.name), each.form) for each in columns),
            ]
            for proxy in plan.proxies
            if (measure.name, proxy.name) in results.found
        ]
        if rows:
            title = f"{measure.name}: {measure.about(plan.scale)}"
            yield title, [["proxy", *(each.title for each in columns)], *rows]


def _notes(plan: Plan, results: Results) -> list[str]:
    """What the figures hang on."""
    names = {each.name: each for each in plan.proxies}
    versions = ", ".join(
        f"{name} {proxy.version()}" for name, proxy in names.items() if name not in results.skipped
    )
    notes = [
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores; {versions}"
    ]
    if plan.settings:
        notes.append(f"the balancer was set otherwise: {json.dumps(plan.settings)}")
    if not results.cores.apart:
        notes.append("only one core: proxies and load took it from each other, so no figure is worth much")
    for measure in plan.measures:
        shares = {
            name: series for name in names if (series := results.series(measure.name, name, "others_share"))
        }
        if shares:
            worst = max(max(each) for each in shares.values())
            middle = statistics.median(share for each in shares.values() for share in each)
            notes.append(
                f"{measure.name}: what is not this benchmark used {middle:.0%} of both cores "
                f"(median; at most {worst:.0%} in a window)"
            )
    notes += [f"{name} was not measured: {reason}" for name, reason in results.skipped.items()]
    said = {(each.said, key) for key, found in results.found.items() for each in found if each.said}
    notes += [f"{measure} of {proxy}: {what}" for what, (measure, proxy) in sorted(said)]
    return notes


def _spread(values: Sequence[float], form: str) -> str:
    """Median, and the least and the most where there are more."""
    if not values:
        return "-"
    median = form.format(statistics.median(values))
    if len(values) == 1:
        return median
    return f"{median} [{form.format(min(values))} to {form.format(max(values))}]"
