"""What the record of an answer tells of its instance's speed."""

from typing import Any

import pytest

from balancer.accounting.observation import PROMPT_OFFSET_TOKENS, observation
from balancer.accounting.record import RequestRecord
from balancer.core.operation import Dialect, Kind, Operation
from balancer.core.ticket import ClientId
from balancer.fleet.conduct import Observation
from balancer.protocol.endings import Counters

PROMPT = 1000 - PROMPT_OFFSET_TOKENS


def record(*, stream: bool = True, leased_at: float | None = 10.0, **counters: Any) -> RequestRecord:
    """Of a prompt that makes a thousand with the offset; its answer began after 2 seconds."""
    operation = Operation(kind=Kind.CHAT, dialect=Dialect.OLLAMA, upstream_path="/api/chat", stream=stream)
    return RequestRecord(
        id="r",
        request_id="r",
        client=ClientId("c"),
        method="POST",
        route="/api/chat",
        received_at=0.0,
        operation=operation,
        leased_at=leased_at,
        answered_at=12.0,
        counters=Counters(**{"prompt_tokens": PROMPT, **counters}),
    )


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (record(), Observation(leased_at=10.0, first_token=0.002)),
        (
            record(generated_tokens=100, generation_seconds=5.0),
            Observation(leased_at=10.0, first_token=0.002, token=0.05),
        ),
        (record(generated_tokens=7, generation_seconds=5.0), Observation(leased_at=10.0, first_token=0.002)),
        (record(prompt_seconds=1.5), Observation(leased_at=10.0, first_token=0.002, waiting=0.5)),
        (
            record(prompt_seconds=1.5, load_seconds=0.25),
            Observation(leased_at=10.0, first_token=0.002, waiting=0.25),
        ),
        (record(prompt_seconds=2.5), Observation(leased_at=10.0, first_token=0.002, waiting=0.0)),
    ],
)
def test_speed_is_taken_per_token(told: RequestRecord, expected: Observation) -> None:
    assert observation(told) == expected


def test_what_does_not_stream_began_when_its_tokens_did() -> None:
    told = record(stream=False, generated_tokens=100, generation_seconds=1.0)

    assert observation(told) == Observation(leased_at=10.0, first_token=0.001, token=0.01)


@pytest.mark.parametrize(
    "told", [record(prompt_tokens=None), record(prompt_tokens=0), record(leased_at=None)]
)
def test_without_a_count_of_the_prompt_or_a_lease_nothing_is_told(told: RequestRecord) -> None:
    assert observation(told) is None
