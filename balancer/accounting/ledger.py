"""The ledger: requests under way, those that ended lately, and the decisions made for them.

One writer: the pipeline begins and ends records, dispatch's decisions are noted as they are made.
Everything is bounded; nothing here runs per token.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from balancer.accounting.record import RequestRecord
from balancer.clock import Clock
from balancer.core.decision import Decision, Standing
from balancer.telemetry.logs import Logger
from balancer.telemetry.metrics import Metrics

_RECENT = 1000
_DECISIONS = 1000


class _Series:
    """What is counted of one model at one instance, looked up once."""

    def __init__(self, metrics: Metrics, instance: str, model: str) -> None:
        self.running = metrics.requests_running.labels(instance, model)
        self.prompt_tokens = metrics.prompt_tokens.labels(instance, model)
        self.generated_tokens = metrics.generation_tokens.labels(instance, model)
        self.lookups = metrics.prefix_lookups.labels(instance, model)
        self.hits = metrics.prefix_hits.labels(instance, model)
        self.believed_tokens = metrics.prefix_believed_tokens.labels(instance, model)
        self.inferred_tokens = metrics.prefix_inferred_tokens.labels(instance, model)
        self.queued = metrics.queue_duration.labels(model)
        self.first_token = metrics.time_to_first_token.labels(model)
        self.duration = metrics.request_duration.labels(model)
        self.per_token = metrics.time_per_output_token.labels(model)


class Ledger:
    """`known_model` tells whether a name may stand in a label: names that clients make up must not."""

    def __init__(
        self, *, metrics: Metrics, log: Logger, clock: Clock, known_model: Callable[[str], bool]
    ) -> None:
        self._metrics = metrics
        self._proxy_overhead = metrics.proxy_overhead.labels()
        self._series: dict[tuple[str, str], _Series] = {}
        self._log = log
        self._clock = clock
        self._known_model = known_model
        self._live: dict[str, RequestRecord] = {}
        self._one_ended = asyncio.Event()
        self._recent: deque[RequestRecord] = deque(maxlen=_RECENT)
        self._decisions: OrderedDict[str, list[Decision]] = OrderedDict()

    async def ended(self, records: Sequence[RequestRecord], *, within_seconds: float) -> None:
        """Wait until these have ended, or so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                while any(each.id in self._live for each in records):
                    self._one_ended.clear()
                    await self._one_ended.wait()

    def begin(self, record: RequestRecord) -> None:
        """A request came in."""
        self._live[record.id] = record

    def decided(self, decision: Decision) -> None:
        """A decision was made for a request that is under way. One to wait is told until the next."""
        made = self._decisions.setdefault(decision.ticket.id, [])
        if made and made[-1].standing is Standing.BUSY:
            made.pop()
        made.append(decision)
        while len(self._decisions) > _DECISIONS:
            self._decisions.popitem(last=False)

    def retried(self, reason: str) -> None:
        """A request is tried again."""
        self._metrics.retries.labels(reason).inc()

    def retry_refused(self) -> None:
        """A request is not tried again as the budget is spent."""
        self._metrics.retries_refused.labels().inc()

    def failed(self, record: RequestRecord, kind: str) -> None:
        """An instance failed a try of a request."""
        self._metrics.errors.labels(record.instance, self._label(record), kind).inc()

    def leased(self, record: RequestRecord) -> None:
        """A request is at an instance."""
        series = self._series_of(record.instance, self._label(record))
        series.running.inc()
        if record.believed_share is not None:
            series.lookups.inc()
            series.hits.inc(record.believed_share > 0)

    def returned(self, record: RequestRecord, instance: str) -> None:
        """Its lease there ended."""
        self._series_of(instance, self._label(record)).running.dec()

    def end(self, record: RequestRecord) -> None:
        """The request ended, its outcome is set: tell the log and the metrics, once."""
        del self._live[record.id]
        self._one_ended.set()
        record.ended_at = self._clock.monotonic()
        self._recent.append(record)
        model = self._label(record)
        metrics = self._metrics
        metrics.requests.labels(record.instance, model, record.dialect, record.outcome).inc()
        if record.status in {429, 503, 504} and not record.instance:
            metrics.rejections.labels(record.outcome).inc()
        if record.operation is not None and record.operation.needs_slot and record.instance:
            self._measure(record, model)
        self._log.info("request_finished", **record.summary())

    def live(self) -> Sequence[RequestRecord]:
        """Requests under way, oldest first."""
        return tuple(self._live.values())

    def recent(self) -> Sequence[RequestRecord]:
        """Requests that ended, newest first."""
        return tuple(reversed(self._recent))

    def decisions(self, request: str) -> Sequence[Mapping[str, object]] | None:
        """Every decision made for a request, first to last; None where none is remembered."""
        made = self._decisions.get(request)
        return None if made is None else [decision.explain() for decision in made]

    def _measure(self, record: RequestRecord, model: str) -> None:
        series, counters = self._series_of(record.instance, model), record.counters
        received, began, ended = record.received_at, record.first_byte_at, record.ended_at
        series.queued.observe(record.queued_seconds)
        if began is not None:
            series.first_token.observe(began - received)
            if record.answered_at is not None and record.parsed_at is not None:
                own = (record.parsed_at - received) + (began - record.answered_at)
                self._proxy_overhead.observe(max(0.0, own))
        if ended is not None:
            series.duration.observe(ended - received)
        if counters.prompt_tokens:
            series.prompt_tokens.inc(counters.prompt_tokens)
            if record.believed_share is not None and record.inferred_share is not None:
                series.believed_tokens.inc(record.believed_share * counters.prompt_tokens)
                series.inferred_tokens.inc(max(0.0, record.inferred_share) * counters.prompt_tokens)
        if counters.generated_tokens:
            series.generated_tokens.inc(counters.generated_tokens)
            if counters.generation_seconds:
                series.per_token.observe(counters.generation_seconds / counters.generated_tokens)

    def _series_of(self, instance: str, model: str) -> _Series:
        series = self._series.get((instance, model))
        if series is None:
            series = self._series[instance, model] = _Series(self._metrics, instance, model)
        return series

    def _label(self, record: RequestRecord) -> str:
        if record.model_label is None:
            known = not record.model or self._known_model(record.model)
            record.model_label = record.model if known else "unknown"
        return record.model_label
