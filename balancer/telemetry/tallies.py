"""Counters, gauges and histograms for what happens with every request.

The same on the wire as those of prometheus_client, which take a lock and some fifty steps of Python for
each count; here all counting is done on the event loop's thread.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_Child = TypeVar("_Child", "Count", "Bins")


class Count:
    """One number of a counter or a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Count up."""
        self.value += amount

    def dec(self) -> None:
        """Count down by one; for gauges."""
        self.value -= 1


class Bins:
    """One histogram: how many values fell into which bucket, and their sum."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Tally(Collector, Generic[_Child]):
    """Children by the values of their labels, made at first use."""

    def __init__(self, name: str, about: str, labels: Sequence[str], *, registry: CollectorRegistry) -> None:
        self._name, self._about, self._labelnames = name, about, tuple(labels)
        self._children: dict[tuple[str, ...], _Child] = {} if labels else {(): self._new()}
        registry.register(self)

    def labels(self, *values: str) -> _Child:
        """The child with these values, in the order of the names."""
        child = self._children.get(values)
        if child is None:
            assert len(values) == len(self._labelnames), f"{self._name} has the labels {self._labelnames}"
            child = self._children[values] = self._new()
        return child

    def describe(self) -> Iterable[Metric]:
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for values, child in tuple(self._children.items()):
            self._add(family, values, child)
        return [family]

    def _new(self) -> _Child:
        raise NotImplementedError

    def _family(self) -> Metric:
        raise NotImplementedError

    def _add(self, family: Metric, values: Sequence[str], child: _Child) -> None:
        raise NotImplementedError


class Counter(Tally[Count]):
    """Counts up."""

    _type = "counter"

    def _new(self) -> Count:
        return Count()

    def _family(self) -> Metric:
        return CounterMetricFamily(self._name, self._about, labels=self._labelnames)

    def _add(self, family: Metric, values: Sequence[str], child: Count) -> None:
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric(values, child.value)


class Gauge(Counter):
    """Counts up and down."""

    _type = "gauge"

    def _family(self) -> Metric:
        return GaugeMetricFamily(self._name, self._about, labels=self._labelnames)


class Histogram(Tally[Bins]):
    """Counts values by `buckets`, whose upper bounds are in ascending order; one more takes all above."""

    _type = "histogram"

    def __init__(
        self,
        name: str,
        about: str,
        labels: Sequence[str],
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._bounds = tuple(buckets)
        self._names = [*(str(float(bound)) for bound in buckets), "+Inf"]
        super().__init__(name, about, labels, registry=registry)

    def _new(self) -> Bins:
        return Bins(self._bounds)

    def _family(self) -> Metric:
        return HistogramMetricFamily(self._name, self._about, labels=self._labelnames)

    def _add(self, family: Metric, values: Sequence[str], child: Bins) -> None:
        assert isinstance(family, HistogramMetricFamily)
        below = list(accumulate(child.counts))
        family.add_metric(values, buckets=list(zip(self._names, below, strict=True)), sum_value=child.total)
