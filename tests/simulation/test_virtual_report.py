"""The HTML report: whole, alone, the same for the same findings, and true to the figures."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from xml.etree.ElementTree import Element, fromstring, tostring

import pytest
from virtual_runs import TINY, case_findings, request, summary

from balancer.commands.findings_table import render
from balancer.simulator.virtual.comparison import FIGURES
from balancer.simulator.virtual.findings import Case, CaseFindings, Findings, as_data, median_of
from balancer.simulator.virtual.markup import element
from balancer.simulator.virtual.plots import WIDTH, Curve, Row, bars, curves, intervals
from balancer.simulator.virtual.report import report

VOID = {"meta", "br", "hr"}
OTHER = TINY.model_copy(update={"name": "other"})
FINDINGS = Findings([case_findings(("slow", 2.0), ("quick", 0.5), ("alike", 2.0))], range(1, 6))


class Outline(HTMLParser):
    """Reads a page and notes what is open, what it holds, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.elements)


def test_the_page_is_whole_and_needs_nothing_from_outside() -> None:
    text = report(FINDINGS)
    outline = Outline(text)

    assert outline.open == []
    assert text.startswith("<!doctype html>")
    assert {tag for tag, _ in outline.elements} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "use",
    } == set()
    assert not any({"src", "href", "style"} & set(found) for _, found in outline.elements)
    assert re.findall(r"https?:|url\(|@import|@font-face", text) == []
    assert "prefers-color-scheme: dark" in text


def test_each_plot_says_what_it_shows_and_has_its_table_beside_it() -> None:
    outline = Outline(report(FINDINGS))
    plots = outline.count("svg", role="img")

    assert plots == outline.count("figure") == outline.count("details") == 8
    assert plots == outline.count("desc")
    assert plots == sum("aria-label" in found for tag, found in outline.elements if tag == "svg")


def test_the_same_findings_are_the_same_bytes() -> None:
    again = Findings([case_findings(("slow", 2.0), ("quick", 0.5), ("alike", 2.0))], range(1, 6))

    assert report(FINDINGS) == report(again)
    assert json.dumps(as_data(FINDINGS)) == json.dumps(as_data(again))


def test_names_cannot_add_to_the_page() -> None:
    hostile = TINY.model_copy(update={"name": "<script>alert(1)<b>"})
    findings = Findings(
        [case_findings(("<i>a", 1.0), ("<i>b", 1.0), scenario=hostile, fleet='"><svg onload=1>')],
        [1],
        ["<u>broken"],
    )
    outline = Outline(report(findings))

    assert {tag for tag, _ in outline.elements} & {"script", "b", "i", "u"} == set()
    assert any("<script>alert(1)<b>" in each for each in outline.words)


def test_a_ratio_is_marked_better_or_worse_only_where_it_is_decided() -> None:
    text = report(FINDINGS)

    assert FINDINGS.cases[0].comparisons["quick"]["ttft_p99"].decided
    assert not FINDINGS.cases[0].comparisons["alike"]["ttft_p99"].decided
    assert 'class="dot better"' in text
    assert 'class="dot worse"' not in text
    assert 'class="dot worse"' in report(Findings([case_findings(("quick", 0.5), ("slow", 2.0))], [1]))


def test_several_scenarios_are_told_together_and_several_fleets_side_by_side() -> None:
    strategies = (("slow", 2.0), ("quick", 0.5))
    scenarios = Findings([case_findings(*strategies), case_findings(*strategies, scenario=OTHER)], [1])
    fleets = Findings([case_findings(*strategies, fleet="one"), case_findings(*strategies, fleet="two")], [1])

    assert "All scenarios together" in report(scenarios)
    assert "fleets compared" in report(fleets)
    assert "fleets compared" not in report(scenarios)


def circles(plot: Element) -> list[float]:
    return [float(each.attrib["cx"]) for each in plot.iter("circle")]


def test_dots_stand_in_the_order_of_their_ratios_around_one() -> None:
    plot = intervals("a", "b", [Row(str(each), "", each, each / 2, each * 2) for each in (0.25, 1.0, 4.0)])
    least, one, most = circles(plot)
    (unity, *_) = [float(each.attrib["x1"]) for each in plot.iter("line") if each.attrib["class"] == "unity"]

    assert 0 <= least < one < most <= WIDTH
    assert unity == one
    assert most - one == pytest.approx(one - least, abs=0.02)


def test_what_no_scale_can_show_is_still_shown() -> None:
    rows = [
        Row("none", "", 0.0),
        Row("all", "", math.inf),
        Row("missing", "none", math.nan),
        Row("two", "", 2.0),
    ]
    plot = intervals("a", "b", rows)

    assert len(circles(plot)) == 1
    assert len(list(plot.iter("path"))) == 2
    assert "none" in [each.text for each in plot.iter("text")]


@pytest.mark.parametrize(
    "values",
    [
        (),
        (0.0,),
        (1.0,),
        (math.nan,),
        (1e-9, 1e9),
        (5.0, 5.0),
        (0.98, 1.01),
        (0.3, 1.2),
        (1.0, 4.9),
        (1.0, 7.0),
        (0.2, 30.0),
    ],
)
def test_plots_of_anything_stay_within_their_frame(values: Sequence[float]) -> None:
    rows = [Row("a", "b", each, each, each) for each in values]
    lines = [Curve("a", 0, [(each, each) for each in values if each > 0])]

    for plot in (intervals("a", "b", rows), bars("a", "b", rows), curves("a", "b", lines, "x", "y")):
        text = tostring(plot, encoding="unicode")
        numbers = [float(value) for value in re.findall(r' (?:x|x1|x2|cx|width)="([^"]+)"', text)]
        ticks = [each for each in plot.iter("text") if each.attrib["text-anchor"] == "middle"]

        assert fromstring(text).tag == "svg"
        assert all(0 <= each <= WIDTH for each in numbers)
        assert len(ticks) <= 6
        assert len(ticks) >= 2 or plot.find("rect") is not None or not ticks


def test_bars_are_as_long_as_their_values() -> None:
    plot = bars("a", "b", [Row("a", "", 2.0), Row("b", "", 1.0), Row("c", "", 0.0)])
    widths = [float(each.attrib["width"]) for each in plot.iter("rect")]

    assert widths == pytest.approx([WIDTH - 20, (WIDTH - 20) / 2, 0])


def test_an_element_holds_text_and_elements_in_order() -> None:
    made = element("p", "a", element("b", "c", class_="d"), "e", "f", data_size=1.5)

    assert tostring(made, encoding="unicode") == '<p data-size="1.5">a<b class="d">c</b>ef</p>'


def test_json_has_null_for_what_does_not_exist_and_a_word_for_infinity() -> None:
    runs = {
        "a": [summary([], seed=1, strategy="a", loads=0)],
        "b": [summary([request()], seed=1, strategy="b", loads=2)],
    }
    text = json.dumps(as_data(Findings([CaseFindings(Case(TINY), runs)], [1])), allow_nan=False)
    case = json.loads(text)["cases"][0]

    assert case["runs"]["a"][0]["ttft_seconds"] == {
        "count": 0,
        "mean": None,
        "p50": None,
        "p95": None,
        "p99": None,
    }
    assert case["comparisons"]["b"]["loads"]["mean"] == "infinite"
    assert case["comparisons"]["b"]["ttft_p50"]["mean"] is None
    assert (case["baseline"], case["scenario"]["name"]) == ("a", "tiny")


def test_a_strategy_that_answered_nothing_is_shown_as_such() -> None:
    runs = {
        "a": [summary([request()], seed=1, strategy="a")],
        "b": [summary([request(outcome=1)], seed=1, strategy="b")],
    }
    findings = Findings([CaseFindings(Case(TINY), runs)], [1])

    assert re.search(r"\b(nan|inf)\b", report(findings) + render(findings)) is None
    assert "none" in render(findings).splitlines()[3]


def test_a_figure_that_no_side_has_in_some_seeds_is_told() -> None:
    nothing, something = [request(outcome=1)], [request()]
    runs = {
        name: [summary(nothing, seed=1, strategy=name), summary(something, seed=2, strategy=name)]
        for name in ("a", "b")
    }
    told = render(Findings([CaseFindings(Case(TINY), runs)], [1, 2]))

    assert "note: b and the baseline have no TTFT p99 in 1 seeds" in told
    assert "no loads" not in told


def test_the_median_of_an_even_number_is_the_lower_middle_one() -> None:
    runs = [summary([], loads=each, seed=each) for each in (4, 1, 3, 2)]

    assert median_of(runs, FIGURES["loads"]) == 2
    assert median_of(runs[1:], FIGURES["loads"]) == 2
    assert math.isnan(median_of(runs, FIGURES["ttft_p50"]))


def test_the_table_says_what_makes_a_comparison_less_than_it_seems() -> None:
    unanswered = [request()] * 9 + [request(outcome=2)]
    runs = {
        "all": [summary([request()] * 10, seed=seed, strategy="all") for seed in (1, 2)],
        "some": [summary(unanswered, seed=1, strategy="some")],
        "none": [summary([request()] * 10, seed=seed, strategy="none") for seed in (1, 2)],
    }
    told = render(Findings([CaseFindings(Case(TINY), runs)], [1, 2]))

    assert "note: some answered 90.0 % of its requests, all 100.0 %: TTFT is that of answered ones" in told
    assert "note: some is compared over 1 of 2 seeds" in told
    assert "note: none" not in told


def test_the_clairvoyant_is_what_the_fleet_could_have_done() -> None:
    found = case_findings(("quick", 0.5), ("clairvoyant", 0.5))

    assert found.of_clairvoyant["quick"].mean == 1
    assert "quick has 1.00 [1.00, 1.00] of the clairvoyant's goodput" in render(Findings([found], [1]))


def test_a_table_over_all_scenarios_names_mean_and_worst() -> None:
    two = [case_findings(("a", 2.0), ("b", 1.0)), case_findings(("a", 1.0), ("b", 1.0), scenario=OTHER)]
    last = render(Findings(two, [1])).splitlines()[-1]

    assert re.split(r"\s{2,}", last)[:2] == ["b", "0.71, 1.00"]


def test_fleets_are_columns() -> None:
    fleets = [case_findings(("a", 2.0), fleet="one"), case_findings(("a", 1.0), fleet="two")]
    told = render(Findings(fleets, [1])).splitlines()

    assert told[0].startswith("tiny: the same sessions on each fleet")
    assert re.split(r"\s{2,}", told[2]) == ["a", "one", "two"]
    assert re.split(r"\s{2,}", next(each for each in told if each.startswith("p99"))) == [
        "p99",
        "11.9 s",
        "5.94 s (0.50 [0.50, 0.50])",
    ]
