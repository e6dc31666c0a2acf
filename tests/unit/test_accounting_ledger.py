"""The ledger: every request is told once, bounded in memory and in labels."""

import io
import json
from typing import Any

import msgspec
import pytest

from balancer.accounting.ledger import Ledger
from balancer.accounting.record import RequestRecord
from balancer.core.decision import Decision, Standing
from balancer.core.operation import Dialect, Kind, Operation
from balancer.core.ticket import ClientId, InstanceId
from balancer.core.variant import Variant
from balancer.protocol.endings import Counters
from balancer.telemetry.logs import make_logger
from balancer.telemetry.metrics import Metrics
from tests.unit.unit_support import FakeClock, ticket


class Books:
    """A ledger whose log and metrics can be read."""

    def __init__(self, *known: str) -> None:
        self.known = set(known)
        self.metrics = Metrics()
        self.stream = io.StringIO()
        self.clock = FakeClock(1000.0)
        self.ledger = Ledger(
            metrics=self.metrics,
            log=make_logger(level="info", output_format="json", stream=self.stream),
            clock=self.clock,
            known_model=lambda model: model in self.known,
        )

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"balancer_{name}", labels)

    def labels(self, name: str) -> set[str]:
        """Every model label that stands in a metric."""
        return {
            sample.labels["model"]
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == f"balancer_{name}" and sample.value
        }


def record(name: str = "1", **facts: Any) -> RequestRecord:
    values: dict[str, Any] = {"model": "m:latest", "outcome": "ok", "status": 200, "route": "/api/chat"}
    return RequestRecord(
        id=name,
        request_id=f"r{name}",
        client=ClientId("c"),
        method="POST",
        received_at=990.0,
        **{**values, **facts},
    )


def leased(**facts: Any) -> RequestRecord:
    operation = Operation(
        kind=Kind.CHAT,
        dialect=Dialect.OLLAMA,
        upstream_path="/api/chat",
        stream=True,
        needs_slot=True,
        variant=Variant("m:latest", (("num_ctx", 1),)),  # type: ignore[arg-type]
    )
    return record(**{"operation": operation, "instance": "a", "attempts": 1, **facts})


def decision(name: str) -> Decision:
    return Decision(
        ticket=ticket(name),
        at=1.0,
        strategy="s",
        standing=Standing.PICKED,
        picked=InstanceId("a"),
        instances=(),
        looked_at=(),
        filtered={},
    )


def test_a_request_is_live_until_it_ended_and_then_recent() -> None:
    books = Books()
    one, two = record("1"), record("2")
    books.ledger.begin(one)
    books.ledger.begin(two)
    assert (one, two) == books.ledger.live()

    books.ledger.end(one)
    assert ((two,), (one,)) == (books.ledger.live(), books.ledger.recent())
    books.ledger.end(two)
    assert ((), (two, one)) == (books.ledger.live(), books.ledger.recent())


def test_a_request_ends_once() -> None:
    books = Books("m:latest")
    one = record()
    books.ledger.begin(one)
    books.ledger.end(one)

    with pytest.raises(KeyError):
        books.ledger.end(one)

    assert 1 == len(books.events) == len(books.ledger.recent())
    assert books.value("requests_total", instance="", model="m:latest", dialect="ollama", outcome="ok") == 1.0


def test_the_recent_and_the_decisions_are_bounded_and_the_newest_stay() -> None:
    books = Books()
    for number in range(1100):
        one = record(str(number))
        books.ledger.begin(one)
        books.ledger.decided(decision(str(number)))
        books.ledger.end(one)

    recent = books.ledger.recent()
    assert (len(recent), recent[0].id, recent[-1].id) == (1000, "1099", "100")
    assert books.ledger.decisions("99") is None
    assert books.ledger.decisions("100") is not None
    assert books.ledger.live() == ()


def test_every_decision_for_a_request_is_told_in_order() -> None:
    books = Books()
    first = decision("1")
    second = Decision(
        ticket=ticket("1", attempt=2),
        at=2.0,
        strategy="s",
        standing=Standing.EXHAUSTED,
        picked=None,
        instances=(),
        looked_at=(),
        filtered={},
    )
    books.ledger.decided(first)
    books.ledger.decided(second)

    assert [first.explain(), second.explain()] == books.ledger.decisions("1")
    assert books.ledger.decisions("2") is None


def test_a_name_that_a_client_made_up_is_no_label() -> None:
    books = Books("m:latest")
    for number in range(50):
        one = leased(name=str(number), model=f"made-up-{number}", instance="")
        books.ledger.begin(one)
        books.ledger.leased(one)
        books.ledger.failed(one, "connect")
        books.ledger.returned(one, "a")
        books.ledger.end(one)

    assert b"made-up" not in books.metrics.render()
    assert {"unknown"} == books.labels("requests_total")


def test_a_request_without_a_model_has_an_empty_label() -> None:
    books = Books()
    one = record(model="")
    books.ledger.begin(one)
    books.ledger.end(one)

    assert {""} == books.labels("requests_total")


def test_what_was_counted_as_running_is_counted_down_though_its_model_went_meanwhile() -> None:
    books = Books("m:latest")
    one = leased()
    books.ledger.begin(one)
    books.ledger.leased(one)
    assert books.value("requests_running", instance="a", model="m:latest") == 1.0

    books.known.clear()  # its only instance went down
    books.ledger.failed(one, "connection_lost")
    books.ledger.returned(one, "a")
    books.ledger.end(one)

    assert books.value("requests_running", instance="a", model="m:latest") == 0.0
    assert set() == books.labels("requests_running")
    assert {"m:latest"} == books.labels("requests_total") == books.labels("errors_total")


def test_retries_and_failures_are_counted_by_reason() -> None:
    books = Books("m:latest")
    books.ledger.retried("connect")
    books.ledger.retried("connect")
    books.ledger.failed(leased(), "bad_response")

    assert books.value("retries_total", reason="connect") == 2.0
    assert books.value("errors_total", instance="a", model="m:latest", kind="bad_response") == 1.0


@pytest.mark.parametrize(
    ("status", "instance", "count"),
    [(503, "", 1.0), (504, "", 1.0), (429, "", 1.0), (503, "a", None), (404, "", None), (200, "", None)],
)
def test_only_what_the_balancer_turned_away_is_a_rejection(
    status: int, instance: str, count: float | None
) -> None:
    books = Books()
    one = record(status=status, outcome="queue_full", instance=instance)
    books.ledger.begin(one)
    books.ledger.end(one)

    assert count == books.value("rejections_total", reason="queue_full")


def test_a_served_request_is_measured() -> None:
    books = Books("m:latest")
    one = leased(
        parsed_at=990.25,
        answered_at=994.0,
        first_byte_at=994.5,
        queued_seconds=3.0,
        counters=Counters(11, 20, 1.0, 0.5, 2.0),
    )
    books.ledger.begin(one)
    books.ledger.end(one)

    assert books.value("queue_duration_seconds_sum", model="m:latest") == 3.0
    assert books.value("time_to_first_token_seconds_sum", model="m:latest") == 4.5
    assert books.value("request_duration_seconds_sum", model="m:latest") == 10.0
    assert books.value("proxy_overhead_seconds_sum") == 0.75
    assert books.value("time_per_output_token_seconds_sum", model="m:latest") == 0.1
    assert books.value("prompt_tokens_total", instance="a", model="m:latest") == 11.0
    assert books.value("generation_tokens_total", instance="a", model="m:latest") == 20.0


@pytest.mark.parametrize("facts", [{"instance": ""}, {"operation": None}])
def test_what_no_instance_served_is_not_measured(facts: dict[str, Any]) -> None:
    books = Books("m:latest")
    one = leased(**facts)
    books.ledger.begin(one)
    books.ledger.end(one)

    assert books.value("request_duration_seconds_count", model="m:latest") is None


def test_the_log_tells_a_request_in_one_event_without_empty_values() -> None:
    books = Books("m:latest")
    one = leased(first_byte_at=991.5, queued_seconds=0.25, counters=Counters(generated_tokens=3))
    books.ledger.begin(one)
    books.ledger.end(one)

    (event,) = books.events
    assert {
        "event": "request_finished",
        "level": "info",
        "timestamp": event["timestamp"],
        "id": "1",
        "request_id": "r1",
        "client": "c",
        "method": "POST",
        "route": "/api/chat",
        "dialect": "ollama",
        "kind": "info",
        "model": "m:latest",
        "variant": "m:latest?num_ctx=1",
        "stream": True,
        "instance": "a",
        "attempts": 1,
        "status": 200,
        "outcome": "ok",
        "body_bytes": 0,
        "answer_bytes": 0,
        "queued_seconds": 0.25,
        "ttft_seconds": 1.5,
        "duration_seconds": 10.0,
        "generated_tokens": 3,
    } == event


def test_a_decision_to_wait_is_told_until_the_next() -> None:
    books = Books()
    picked = decision("1")
    first, second = (msgspec.structs.replace(picked, standing=Standing.BUSY, at=at) for at in (0.5, 0.7))
    books.ledger.decided(first)
    books.ledger.decided(second)
    assert [second.explain()] == books.ledger.decisions("1")

    books.ledger.decided(picked)

    assert [picked.explain()] == books.ledger.decisions("1")
