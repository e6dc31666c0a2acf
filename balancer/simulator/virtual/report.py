"""The findings of an experiment as one HTML page: plots, and beside each the table that it is drawn from.
The page needs nothing from outside, runs no script, and is the same bytes for the same findings.
"""

import math
from collections.abc import Iterable, Sequence
from importlib.resources import files
from xml.etree.ElementTree import Element

from balancer import __version__
from balancer.simulator.virtual.comparison import FIGURES, UTILISATION, Comparison, Figure
from balancer.simulator.virtual.findings import CaseFindings, Findings, FleetFindings, median_of
from balancer.simulator.virtual.markup import element, page
from balancer.simulator.virtual.plots import Curve, Row, bars, curves, intervals, swatch
from balancer.simulator.virtual.statistics import CURVE_PER_MILLE, Summary
from balancer.simulator.virtual.wording import quantity, times, with_interval, won

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_COMPARED = tuple(FIGURES[key] for key in ("ttft_p50", "ttft_p95", "ttft_p99", "goodput", "loads"))
_BARS = tuple(FIGURES[key] for key in ("goodput", "loads"))
_HOW_TO_READ = (
    "Each dot is a strategy's figure over the baseline's of the same seed: the geometric mean of these "
    "ratios, with its 95 % bootstrap interval, on a scale where the mark is 1. Green is better and "
    "red is worse, where the interval leaves out that both are equal. Times to the first byte (TTFT) are "
    "those of answered requests alone: see how many each has answered. A rejected, expired, cancelled or "
    "failed request is never goodput. All of it is simulated."
)


def report(findings: Findings) -> str:
    """The page."""
    style = (files("balancer.simulator.virtual") / "report.css").read_text("utf-8")
    names = ", ".join(dict.fromkeys(each.case.scenario.name for each in findings.cases))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", f"Strategies compared: {names}"),
        element("style", style),
    )
    body = element(
        "body",
        element("h1", "Strategies compared in virtual time"),
        element("p", f"Scenarios: {names}. Seeds: {', '.join(map(str, findings.seeds))}."),
        element("p", _HOW_TO_READ, class_="quiet"),
        *(element("p", f"Came to nothing: {each}", class_="bad") for each in findings.failures),
        *_overall(findings),
        *(part for name, each in findings.fleets.items() for part in _fleets(name, each)),
        *(part for each in findings.cases for part in _case(each)),
        element("p", f"balancer simulate, version {__version__}", class_="quiet"),
    )
    return page(element("html", head, body, lang="en"))


def _overall(findings: Findings) -> Iterable[Element]:
    if len(findings.cases) < 2 or not findings.overall:
        return
    baseline = findings.cases[0].baseline
    yield element("h2", "All scenarios together")
    yield element(
        "p", f"Geometric mean over scenarios, over {baseline}; and the worst of them.", class_="quiet"
    )
    rows = [
        [
            strategy,
            *(f"{times(each.mean)}, worst {times(each.worst)}" for each in map(by.get, _keys()) if each),
        ]
        for strategy, by in findings.overall.items()
    ]
    yield _table(["strategy", *(each.label for each in _COMPARED)], rows)


def _case(found: CaseFindings) -> Iterable[Element]:
    yield element("h2", found.case.name)
    runs = next(iter(found.runs.values()))
    yield element(
        "p",
        f"{runs[0].requests:,} requests a run, {len(runs)} seeds. The baseline is {found.baseline}.",
        class_="quiet",
    )
    yield element(
        "div",
        *(_ratio_figure(found, each) for each in _COMPARED if found.comparisons),
        _curve_figure(found),
        *(_bar_figure(found, each) for each in _BARS),
        class_="plots",
    )
    yield element("h3", "Every figure: the median of the seeds")
    figures = [*FIGURES.values(), UTILISATION]
    yield _table(
        ["", *found.runs],
        [
            [each.label, *(quantity(median_of(runs, each), each) for runs in found.runs.values())]
            for each in figures
        ],
    )


def _fleets(name: str, found: FleetFindings) -> Iterable[Element]:
    first, *_ = found.cases
    yield element("h2", f"{name}: fleets compared")
    yield element(
        "p",
        "The same sessions arrive at every fleet. The median of the seeds, and behind it the ratio to the "
        f"same strategy on {first.case.fleet}.",
        class_="quiet",
    )
    for strategy in first.runs:
        yield element("h3", strategy)
        yield _table(
            ["", *(each.case.fleet for each in found.cases)],
            [[each.label, *_by_fleet(found, strategy, each)] for each in (*_COMPARED, FIGURES["good_share"])],
        )


def _by_fleet(found: FleetFindings, strategy: str, figure: Figure) -> Iterable[str]:
    for each in found.cases:
        told = quantity(median_of(each.runs.get(strategy, ()), figure), figure)
        compared = found.comparisons.get(each.case.fleet, {}).get(strategy)
        yield f"{told} ({with_interval(compared[figure.key])})" if compared else told


def _ratio_figure(found: CaseFindings, figure: Figure) -> Element:
    compared = {strategy: each[figure.key] for strategy, each in found.comparisons.items()}
    note = f"over {found.baseline}; {_better(figure)}"
    plot = intervals(
        f"{figure.label} ({found.case.name})",
        f"Geometric means of ratios with 95 % intervals, {note}.",
        [
            Row(strategy, with_interval(each), each.mean, each.low, each.high, _mark(each, figure))
            for strategy, each in compared.items()
        ],
    )
    rows = [
        [strategy, with_interval(each), won(each), str(each.ties), times(each.worst), str(each.without)]
        for strategy, each in compared.items()
    ]
    columns = ["strategy", "ratio", "better", "equal", "worst seed", "seeds without"]
    return _figure(figure.label, note, plot, _table(columns, rows))


def _curve_figure(found: CaseFindings) -> Element:
    lines = [
        Curve(strategy, number, [(x, y) for x, y in _slower_than(runs) if x > 0 and y > 0])
        for number, (strategy, runs) in enumerate(found.runs.items())
    ]
    plot = curves(
        f"Time to first byte ({found.case.name})",
        "The share of answered requests that waited longer, by time. Lower and further left is better.",
        [line for line in lines if line.points],
        "seconds to the first byte",
        "share that waited longer",
    )
    legend = element(
        "ul", *(element("li", swatch(line.series), line.label) for line in lines), class_="legend"
    )
    shown = (500, 900, 950, 990, 995, 999)
    rows = [
        [strategy, *(quantity(_curve_at(runs, CURVE_PER_MILLE.index(each)), _COMPARED[0]) for each in shown)]
        for strategy, runs in found.runs.items()
    ]
    table = _table(["strategy", *(f"{each / 10:g} %" for each in shown)], rows)
    return _figure("Time to first byte, distribution", "the median of the seeds", plot, table, legend)


def _bar_figure(found: CaseFindings, figure: Figure) -> Element:
    rows = []
    for strategy, runs in found.runs.items():
        values = [value for value in map(figure.of, runs) if not math.isnan(value)]
        least, most = (min(values), max(values)) if values else (math.nan, math.nan)
        middle = median_of(runs, figure)
        rows.append(Row(strategy, quantity(middle, figure), middle, least, most))
    note = f"the median of the seeds, from the least to the most; {_better(figure)}"
    plot = bars(f"{figure.label} ({found.case.name})", f"Bars: {note}.", rows)
    cells = [
        [row.label, *(quantity(each, figure) for each in (row.value, row.low, row.high))] for row in rows
    ]
    return _figure(
        f"{figure.label} a run", note, plot, _table(["strategy", "median", "least", "most"], cells)
    )


def _figure(title: str, note: str, plot: Element, table: Element, *more: Element) -> Element:
    return element(
        "figure",
        element("h3", _capital(title)),
        plot,
        *more,
        element("figcaption", f"{_capital(note)}."),
        element("details", element("summary", "Table"), table),
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Element:
    """A table whose first column names its rows."""
    head = element("tr", *(element("th", each, scope="col") for each in columns))
    lines = [
        element("tr", element("th", row[0], scope="row"), *(element("td", each) for each in row[1:]))
        for row in rows
    ]
    table = element("table", element("thead", head), element("tbody", *lines))
    return element("div", table, class_="scroll", tabindex="0")


def _slower_than(runs: Sequence[Summary]) -> Iterable[tuple[float, float]]:
    for index, per_mille in enumerate(CURVE_PER_MILLE):
        yield _curve_at(runs, index), 1 - per_mille / 1000


def _curve_at(runs: Sequence[Summary], index: int) -> float:
    return median_of(runs, Figure("", "", "s", True, lambda run: run.ttft_curve[index]))


def _mark(found: Comparison, figure: Figure) -> str:
    if not found.decided:
        return ""
    return "better" if (found.mean < 1) is figure.lower_is_better else "worse"


def _better(figure: Figure) -> str:
    return "lower is better" if figure.lower_is_better else "higher is better"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _keys() -> Iterable[str]:
    return (each.key for each in _COMPARED)
