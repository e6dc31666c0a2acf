"""How an answer ended, over every stream recorded from a real server and over made-up traps."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.core.operation import Dialect, Kind, Operation
from balancer.protocol.endings import TAIL_BYTES, Counters, Ending, Tail, judge, read_counters
from balancer.protocol.parse import parse_request
from balancer.protocol.routes import find_route
from tests.unit.unit_support import Recorded, fed, recordings

STREAMS = [
    each
    for each in recordings()
    if each.status == 200 and each.content_type in {"application/x-ndjson", "text/event-stream"}
]
GENERATING = {
    "/api/generate",
    "/api/chat",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
}
ANSWERS = [each for each in STREAMS if each.path in GENERATING]
CHANGES = [each for each in STREAMS if each.path not in GENERATING]


def operation_of(recorded: Recorded) -> Operation:
    match = find_route(recorded.method, recorded.path)
    encoding = "zstd" if recorded.request_body.startswith(b"\x28\xb5\x2f\xfd") else ""
    return parse_request(match, recorded.request_body, content_type="", content_encoding=encoding).operation


def stream(kind: Kind, dialect: Dialect) -> Operation:
    return Operation(kind=kind, dialect=dialect, upstream_path="/", stream=True)


NATIVE = stream(Kind.CHAT, Dialect.OLLAMA)
OPENAI = stream(Kind.CHAT, Dialect.OPENAI)
RESPONSES = stream(Kind.RESPONSE, Dialect.OPENAI)
ANTHROPIC = stream(Kind.CHAT, Dialect.ANTHROPIC)
PULL = stream(Kind.MANAGE, Dialect.OLLAMA)


def last_record(body: bytes) -> int:
    """Where the last record of a stream begins: its last line, or its last event with its name."""
    whole = body.rstrip()
    return whole.rfind(b"\n\n" if b"\n\n" in whole else b"\n") + 1


def test_there_are_recordings_of_every_dialect() -> None:
    assert {each.path for each in ANSWERS} == GENERATING
    assert len(ANSWERS) >= 60


@pytest.mark.parametrize("recorded", ANSWERS, ids=lambda each: each.name)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_recorded_answer_is_whole_however_it_is_cut_into_chunks(
    recorded: Recorded, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(recorded.body) - 1), max_size=30)))
    tail = Tail()
    for begin, end in zip([0, *cuts], [*cuts, len(recorded.body)], strict=True):
        tail.feed(recorded.body[begin:end])

    assert judge(operation_of(recorded), tail) is Ending.WHOLE
    assert read_counters(operation_of(recorded), tail) == read_counters(
        operation_of(recorded), fed(recorded.body)
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, TAIL_BYTES - 1, TAIL_BYTES, TAIL_BYTES + 1])
def test_recorded_answers_are_whole_in_chunks_of_one_size(size: int) -> None:
    assert [
        each.name
        for each in ANSWERS
        if judge(operation_of(each), fed(each.body, size=size)) is not Ending.WHOLE
    ] == []


@pytest.mark.parametrize("recorded", ANSWERS, ids=lambda each: each.name)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_recorded_answer_cut_off_in_its_last_record_is_unfinished(
    recorded: Recorded, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(last_record(recorded.body), len(recorded.body.rstrip()) - 1))
    size = data.draw(st.integers(1, 3000))

    assert judge(operation_of(recorded), fed(recorded.body[:cut], size=size)) is Ending.UNFINISHED


@pytest.mark.parametrize("recorded", ANSWERS, ids=lambda each: each.name)
def test_a_recorded_answer_without_its_last_record_is_unfinished(recorded: Recorded) -> None:
    body = recorded.body[: last_record(recorded.body)]

    assert judge(operation_of(recorded), fed(body) if body else Tail()) is Ending.UNFINISHED


@pytest.mark.parametrize("recorded", CHANGES, ids=lambda each: each.name)
def test_a_recorded_change_ends_with_success_or_with_an_error(recorded: Recorded) -> None:
    last = json.loads(recorded.body.splitlines()[-1])
    expected = Ending.ERROR if "error" in last else Ending.WHOLE

    for size in (1, 5, 100_000):
        assert judge(operation_of(recorded), fed(recorded.body, size=size)) is expected
    assert (
        judge(operation_of(recorded), fed(recorded.body[: last_record(recorded.body)])) is Ending.UNFINISHED
    )


@pytest.mark.parametrize(
    "recorded",
    [each for each in STREAMS if each.path in {"/api/generate", "/api/chat"}],
    ids=lambda each: each.name,
)
def test_counters_of_a_native_answer_are_those_of_its_last_record(recorded: Recorded) -> None:
    last = json.loads(recorded.body.splitlines()[-1])

    for size in (1, 100, 100_000):
        assert Counters(
            prompt_tokens=last["prompt_eval_count"],
            generated_tokens=last["eval_count"],
            load_seconds=last["load_duration"] / 1e9,
            prompt_seconds=last["prompt_eval_duration"] / 1e9,
            generation_seconds=last["eval_duration"] / 1e9,
            total_seconds=last["total_duration"] / 1e9,
        ) == read_counters(operation_of(recorded), fed(recorded.body, size=size))


def usage_of(body: bytes) -> dict[str, int]:
    """The last usage that a body of `/v1` tells, by the full decoder."""
    found: dict[str, int] = {}
    for line in body.splitlines():
        text = line.removeprefix(b"data: ")
        value = json.loads(text) if text.startswith(b"{") else {}
        found = value.get("response", value).get("usage") or found
    return found


@pytest.mark.parametrize(
    "recorded",
    [
        each
        for each in recordings()
        if each.status == 200
        and each.method == "POST"
        and each.path.startswith("/v1/")
        and usage_of(each.body)
    ],
    ids=lambda each: each.name,
)
def test_counters_of_a_v1_answer_are_those_of_its_usage(recorded: Recorded) -> None:
    usage = usage_of(recorded.body)
    counters = read_counters(operation_of(recorded), fed(recorded.body, size=50))

    assert usage.get("prompt_tokens", usage.get("input_tokens")) == counters.prompt_tokens
    assert usage.get("completion_tokens", usage.get("output_tokens")) == counters.generated_tokens


@pytest.mark.parametrize(
    "recorded",
    [
        each
        for each in recordings()
        if each.status == 200
        and each.path in {"/api/generate", "/api/chat"}
        and each.content_type == "application/json"
        and b'"done":true' in each.body
        and not each.body.endswith(b"]}")  # log probabilities stand behind the counters
    ],
    ids=lambda each: each.name,
)
def test_an_answer_in_one_piece_is_whole_and_its_counters_are_read(recorded: Recorded) -> None:
    counters = read_counters(operation_of(recorded), fed(recorded.body))

    assert json.loads(recorded.body).get("eval_count") == counters.generated_tokens
    assert judge(operation_of(recorded), fed(recorded.body)) is Ending.WHOLE


def test_an_answer_in_one_piece_is_whole_by_its_framing() -> None:
    operation = Operation(kind=Kind.CHAT, dialect=Dialect.OLLAMA, upstream_path="/")

    assert judge(operation, fed(b'{"done":false}')) is Ending.WHOLE


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        (NATIVE, b'{"message":{},"done":false}\n{"error":"llama runner terminated"}\n'),
        (NATIVE, b'{"error":"' + b"x" * 5000 + b'"}\n'),
        (PULL, b'{"status":"pulling manifest"}\n{"error":"no space"}\n'),
        (OPENAI, b'data: {"choices":[]}\n\ndata: {"error":{"message":"gone"}}\n\n'),
        (OPENAI, b'data: {"error":{"message":"' + b"x" * 5000 + b'"}}\n\n'),
        (ANTHROPIC, b'event: error\ndata: {"type":"error","error":{"message":"gone"}}\n\n'),
        (ANTHROPIC, b'event: error\r\ndata: {"type":"error","error":{}}\r\n\r\n'),
        (RESPONSES, b'event: response.failed\ndata: {"type":"response.failed"}\n\n'),
        (RESPONSES, b'data: {"type":"response.failed","response":{"text":"' + b"x" * 5000 + b'"}}\n\n'),
    ],
)
@pytest.mark.parametrize("size", [1, 11, 100_000])
def test_an_error_record_at_the_end_is_an_error(operation: Operation, body: bytes, size: int) -> None:
    assert judge(operation, fed(body, size=size)) is Ending.ERROR


@pytest.mark.parametrize("operation", [NATIVE, PULL, OPENAI, RESPONSES, ANTHROPIC])
@pytest.mark.parametrize(
    "body", [b"", b"\n", b"\n\n", b"{}\n", b"data: {}\n\n", b": ping\n\n", b"done", b'"done":true']
)
def test_a_body_that_says_nothing_is_unfinished(operation: Operation, body: bytes) -> None:
    assert judge(operation, fed(body) if body else Tail()) is Ending.UNFINISHED
