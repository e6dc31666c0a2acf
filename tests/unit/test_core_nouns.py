"""Variants, operations, tickets and decisions: plain data that explains itself."""

import json

import pytest

from balancer.core.decision import Decision, Standing
from balancer.core.names import canonical_name
from balancer.core.operation import Dialect, Kind, Operation, Wire
from balancer.core.scores import Asked, Candidate, told
from balancer.core.ticket import InstanceId
from balancer.core.variant import RUNNER_OPTIONS, Variant
from tests.unit.unit_support import ticket

M = canonical_name("m")


def test_a_variant_without_runner_options_is_auto() -> None:
    variant = Variant.of(M, {"temperature": 0.5, "num_predict": 3, "seed": 1})

    assert variant.auto
    assert Variant(M) == variant
    assert str(variant) == "m:latest"


@pytest.mark.parametrize("name", sorted(RUNNER_OPTIONS))
def test_every_runner_option_makes_another_variant(name: str) -> None:
    one, other = (True, False) if name == "use_mmap" else (7, 8)
    variant = Variant.of(M, {name: one})

    assert not variant.auto
    assert variant != Variant(M)
    assert variant != Variant.of(M, {name: other})


@pytest.mark.parametrize("options", [{"num_ctx": "7"}, {"num_ctx": True}, {"num_ctx": 7.5}, {"use_mmap": 1}])
def test_a_value_that_the_option_cannot_have_makes_no_variant(options: dict[str, object]) -> None:
    assert Variant.of(M, options).auto


def test_the_order_of_options_does_not_matter() -> None:
    one = Variant.of(M, {"num_ctx": 4096, "num_gpu": 1})

    assert one == Variant.of(M, {"num_gpu": 1, "num_ctx": 4096})
    assert hash(one) == hash(Variant.of(M, {"num_gpu": 1, "num_ctx": 4096}))
    assert str(one) == "m:latest?num_ctx=4096&num_gpu=1"


@pytest.mark.parametrize("value", [None, [], {}, [4096]])
def test_a_value_that_no_option_has_is_left_out(value: object) -> None:
    assert Variant.of(M, {"num_ctx": value}).auto


def test_shift_is_part_of_a_variant_only_where_it_was_asked() -> None:
    assert Variant.of(M, {}).auto
    assert Variant.of(M, {}, shift=False) != Variant.of(M, {}, shift=True)
    assert str(Variant.of(M, {}, shift=False)) == "m:latest?shift=False"


@pytest.mark.parametrize(
    ("dialect", "stream", "wire"),
    [
        (Dialect.OLLAMA, True, Wire.NDJSON),
        (Dialect.OPENAI, True, Wire.SSE),
        (Dialect.ANTHROPIC, True, Wire.SSE),
        (Dialect.OLLAMA, False, Wire.JSON),
        (Dialect.OPENAI, False, Wire.JSON),
        (Dialect.ANTHROPIC, False, Wire.JSON),
    ],
)
def test_the_wire_follows_from_dialect_and_stream(dialect: Dialect, stream: bool, wire: Wire) -> None:
    operation = Operation(kind=Kind.CHAT, dialect=dialect, upstream_path="/", stream=stream)

    assert wire is operation.wire


def test_a_retry_keeps_place_and_deadline_and_excludes_the_failed() -> None:
    first = ticket(arrival=7, deadline=1200.0)

    second = first.excluding(InstanceId("a"))
    third = second.excluding(InstanceId("b"))

    assert (7, 1200.0, 2, {"a"}) == (second.arrival, second.deadline, second.attempt, second.excluded)
    assert (first.id, 7, 3, {"a", "b"}) == (third.id, third.arrival, third.attempt, third.excluded)
    assert first.excluded == frozenset()


def decision(standing: Standing = Standing.PICKED, attempt: int = 1) -> Decision:
    return Decision(
        ticket=ticket("r-1", attempt=attempt, queued_at=999.75),
        at=1000.0,
        strategy="round_robin",
        standing=standing,
        picked=InstanceId("a") if standing is Standing.PICKED else None,
        instances=tuple(map(InstanceId, "abcd")),
        looked_at=tuple(map(InstanceId, "abc")),
        filtered={InstanceId("b"): "drained"},
        scores=told(
            Asked(0, needs_slot=False),
            [Candidate(InstanceId("a"), running=1), Candidate(InstanceId("c"), weight=2.0)],
            [{"load": 1.0, "wait": 0.5}, {"load": 2.0, "wait": 0.0}],
        ),
    )


def test_a_decision_explains_filters_scores_and_terms_as_json() -> None:
    told = json.loads(json.dumps(decision().explain()))

    assert told == {
        "request": "r-1",
        "model": "m:latest",
        "prompt_tokens": None,
        "needs_slot": True,
        "attempt": 1,
        "waited_seconds": 0.25,
        "strategy": "round_robin",
        "standing": "picked",
        "picked": "a",
        "reason": "round_robin: lowest score of 2",
        "waiting": None,
        "window": [],
        "considered": [
            {
                "instance": "a",
                "filtered": None,
                "score": 1.5,
                "terms": {"load": 1.0, "wait": 0.5},
                "facts": {"weight": 1.0, "health": 1.0, "running": 1},
            },
            {"instance": "b", "filtered": "drained", "score": None, "terms": {}, "facts": {}},
            {
                "instance": "c",
                "filtered": None,
                "score": 2.0,
                "terms": {"load": 2.0, "wait": 0.0},
                "facts": {"weight": 2.0, "health": 1.0, "running": 0},
            },
            {"instance": "d", "filtered": "model not there", "score": None, "terms": {}, "facts": {}},
        ],
    }


def test_a_reason_names_the_try_and_no_instance() -> None:
    assert decision(attempt=3).reason == "round_robin: lowest score of 2; try 3"


@pytest.mark.parametrize("standing", sorted(set(Standing) - {Standing.PICKED, Standing.LOAD}))
def test_a_decision_without_a_pick_gives_its_standing_as_reason(standing: Standing) -> None:
    assert standing.value == decision(standing).reason
    assert decision(standing).explain()["picked"] is None
