"""Own counters, gauges and histograms: on the wire the same as prometheus_client's."""

import re

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from balancer.telemetry import tallies

BUCKETS = (0.005, 0.25, 1, 2.5, 60)
LABELS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\\n\r{},= '), max_size=8)
VALUES = st.sampled_from([0.0, -1.0, 61.0, *map(float, BUCKETS)]) | st.floats(-1e3, 1e6)
_CREATED = re.compile(r"(?m)^(?:# (?:HELP|TYPE) )?\w+_created\b.*\n")
"""When a series began is told by prometheus_client alone."""


def rendered(registry: CollectorRegistry) -> str:
    return _CREATED.sub("", generate_latest(registry).decode())


def parsed(text: str) -> list[tuple[object, ...]]:
    return [
        (family.name, family.type, family.documentation, tuple(map(tuple, family.samples)))
        for family in text_string_to_metric_families(text)
    ]


@given(st.lists(st.tuples(LABELS, LABELS, VALUES), max_size=20))
def test_the_same_observations_are_told_in_the_same_words(seen: list[tuple[str, str, float]]) -> None:
    told = []
    for house in (prometheus_client, tallies):
        registry = CollectorRegistry()
        counter = house.Counter("asked_total", "What was asked", ("model", "kind"), registry=registry)
        gauge = house.Gauge("running", "What runs\n\\", ("model", "kind"), registry=registry)
        histogram = house.Histogram(
            "took_seconds", "How long", ("model", "kind"), buckets=BUCKETS, registry=registry
        )
        for model, kind, value in seen:
            counter.labels(model, kind).inc()
            counter.labels(model, kind).inc(abs(value))
            gauge.labels(model, kind).inc(2)
            gauge.labels(model, kind).dec()
            histogram.labels(model, kind).observe(value)
        told.append(rendered(registry))

    assert told[0] == told[1]
    assert parsed(told[0]) == parsed(told[1])


def test_those_without_labels_are_told_before_anything_is_counted() -> None:
    told = []
    for house in (prometheus_client, tallies):
        registry = CollectorRegistry()
        house.Counter("asked", "What was asked", (), registry=registry)
        house.Gauge("running", "What runs", (), registry=registry)
        house.Histogram("took", "How long", (), buckets=BUCKETS, registry=registry)
        told.append(rendered(registry))

    assert told[0] == told[1]
    assert "asked_total 0.0" in told[1]


def test_two_of_one_name_cannot_be_in_one_registry() -> None:
    registry = CollectorRegistry()
    tallies.Counter("asked", "What was asked", (), registry=registry)

    with pytest.raises(ValueError, match="asked"):
        tallies.Gauge("asked_total", "What was asked", (), registry=registry)


def test_a_child_has_a_value_for_every_label() -> None:
    counter = tallies.Counter("asked", "What was asked", ("model",), registry=CollectorRegistry())

    with pytest.raises(AssertionError):
        counter.labels("m", "chat")
    assert counter.labels("m") is counter.labels("m")
