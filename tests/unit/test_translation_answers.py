"""The answers of other runtimes in Ollama's shapes: whole, streamed, cut anywhere, broken off, in error."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.core.operation import Dialect, Kind, Operation
from balancer.errors import BadResponse
from balancer.protocol.endings import Ending, Tail, judge, read_counters
from balancer.protocol.failures import RUNTIME_LACKS
from balancer.protocol.translation.bodies import PlainAnswer, error_of
from balancer.protocol.translation.embeddings import EmbeddingsAnswer
from balancer.protocol.translation.generation import GenerationAnswer
from balancer.protocol.translation.served import AnswerTranslation
from tests.unit.unit_support import FakeClock

SSE, JSON = "text/event-stream", "application/json"
TIMINGS = {"prompt_n": 5, "prompt_ms": 2.5, "predicted_n": 3, "predicted_ms": 0.75}
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
SCORE = {"token": "a", "logprob": -0.5, "bytes": [97], "id": 4}
CREATED = "2023-11-14T22:30:00.000000Z"
"""What a FakeClock shows that nobody moved."""
DONE = {"model": "m", "created_at": CREATED, "message": {"role": "assistant", "content": ""}, "done": True}


def piece(delta: dict[str, Any] | None = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": reason, **more}]}


def stream(*events: dict[str, Any] | bytes, end: str = "\n\n") -> bytes:
    told = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in events]
    return b"".join(b"data: " + each + end.encode() for each in told)


def translated(
    data: bytes | Sequence[bytes], answer: AnswerTranslation | None = None
) -> list[dict[str, Any]]:
    answer = answer or GenerationAnswer(Kind.CHAT, "m", FakeClock())
    answer.begin(200, SSE)
    pieces = [data] if isinstance(data, bytes) else data
    out = b"".join(answer.feed(each) for each in pieces) + answer.end()
    return [json.loads(line) for line in out.splitlines()]


def whole(answer: AnswerTranslation, body: object, status: int = 200) -> tuple[int, Any]:
    answer.begin(status, JSON)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    out = answer.feed(raw[:7]) + answer.feed(raw[7:]) + answer.end()
    assert answer.media_type.startswith("application/json")
    return answer.status, json.loads(out)


def chat() -> GenerationAnswer:
    return GenerationAnswer(Kind.CHAT, "m", FakeClock())


FULL = stream(
    piece({"role": "assistant", "content": None}),
    piece({"reasoning_content": "I weigh "}),
    piece({"reasoning": "it."}),
    piece({"content": "naïve ☃"}, logprobs={"content": [{**SCORE, "top_logprobs": [SCORE]}]}),
    b"",
    piece({"tool_calls": [{"index": 0, "id": "c0", "function": {"name": "f", "arguments": ""}}]}),
    piece({"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Pa'}}]}),
    piece({"tool_calls": [{"index": 0, "function": {"arguments": 'ris"}'}}]}),
    piece({"tool_calls": [{"index": 1, "id": "c1", "function": {"name": "g", "arguments": "{}"}}]}),
    piece(reason="tool_calls"),
    {"choices": [], "usage": USAGE, "timings": TIMINGS},
    b"[DONE]",
).replace(b"data: \n\n", b": keep-alive\n\n")
SCORES = [{"token": "a", "logprob": -0.5, "bytes": [97]}]
FULL_RECORDS: list[dict[str, Any]] = [
    {"message": {"role": "assistant", "content": "", "thinking": "I weigh "}, "done": False},
    {"message": {"role": "assistant", "content": "", "thinking": "it."}, "done": False},
    {
        "message": {"role": "assistant", "content": "naïve ☃"},
        "done": False,
        "logprobs": [{**SCORES[0], "top_logprobs": SCORES}],
    },
    {
        "message": {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "c0", "function": {"index": 0, "name": "f", "arguments": {"city": "Paris"}}},
                {"id": "c1", "function": {"index": 1, "name": "g", "arguments": {}}},
            ],
        },
        "done": False,
    },
    {
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 5,
        "prompt_eval_duration": 2_500_000,
        "eval_count": 3,
        "eval_duration": 750_000,
    },
]
FULL_RECORDS = [{"model": "m", "created_at": CREATED, **each} for each in FULL_RECORDS]


def test_a_stream_becomes_ollamas_records() -> None:
    assert translated(FULL) == FULL_RECORDS


@given(st.lists(st.integers(min_value=0, max_value=len(FULL)), max_size=40))
def test_it_makes_no_difference_where_the_bytes_are_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(FULL)]
    pieces = [FULL[begin:end] for begin, end in pairwise(places)]

    assert translated(pieces) == FULL_RECORDS


def test_every_record_is_out_as_soon_as_its_event_is_in() -> None:
    answer = chat()
    answer.begin(200, SSE)
    event = stream(piece({"content": "a"}))

    assert answer.feed(event[:-2]) == b""
    assert json.loads(answer.feed(event[-2:]))["message"]["content"] == "a"


@settings(max_examples=200)
@given(st.integers(min_value=0, max_value=len(FULL) - len(b"data: [DONE]\n\n") + len(b"data: [DONE]")))
def test_a_stream_that_is_cut_short_is_never_done(length: int) -> None:
    answer = chat()
    answer.begin(200, SSE)
    tail = Tail()
    out = answer.feed(FULL[:length]) + answer.end()
    if out:
        tail.feed(out)
    operation = Operation(kind=Kind.CHAT, dialect=Dialect.OLLAMA, upstream_path="/api/chat", stream=True)

    assert not any(json.loads(line)["done"] for line in out.splitlines())
    assert judge(operation, tail) is Ending.UNFINISHED


def test_a_stream_without_a_reason_to_end_is_not_done() -> None:
    assert [each["done"] for each in translated(stream(piece({"content": "a"}), b"[DONE]"))] == [False]


def test_the_last_record_is_found_whole_and_its_counters_are_read() -> None:
    answer = chat()
    answer.begin(200, SSE)
    tail = Tail()
    tail.feed(answer.feed(FULL) + answer.end())
    operation = Operation(kind=Kind.CHAT, dialect=Dialect.OLLAMA, upstream_path="/api/chat", stream=True)
    counters = read_counters(operation, tail)

    assert judge(operation, tail) is Ending.WHOLE
    assert (counters.prompt_tokens, counters.generated_tokens) == (5, 3)
    assert (counters.prompt_seconds, counters.generation_seconds) == (0.0025, 0.00075)


def test_line_ends_may_be_those_of_the_web() -> None:
    events = (piece({"content": "a"}), piece(reason="stop"), b"[DONE]")

    assert translated(stream(*events, end="\r\n\r\n")) == translated(stream(*events))


def test_text_and_a_generate_request_have_their_own_shapes() -> None:
    text = stream(
        {"choices": [{"text": "He", "finish_reason": None}]},
        {"choices": [{"text": "", "finish_reason": "length"}]},
        b"[DONE]",
    )
    told = translated(text, GenerationAnswer(Kind.GENERATE, "m", FakeClock()))

    assert told == [
        {"model": "m", "created_at": CREATED, "response": "He", "done": False},
        {"model": "m", "created_at": CREATED, "response": "", "done": True, "done_reason": "length"},
    ]


def test_time_stands_in_for_what_a_runtime_does_not_measure() -> None:
    clock = FakeClock()
    answer = GenerationAnswer(Kind.CHAT, "m", clock)
    answer.begin(200, SSE)
    for seconds, event in ((0.5, piece({"content": "a"})), (0.25, piece({"content": "b"}, "stop"))):
        clock.advance(seconds)
        answer.feed(stream(event))
    clock.advance(0.125)
    last = json.loads(answer.feed(stream({"choices": [], "usage": USAGE}, b"[DONE]")))

    assert (last["total_duration"], last["prompt_eval_duration"]) == (875_000_000, 500_000_000)
    assert (last["eval_duration"], last["eval_count"]) == (250_000_000, 3)


def test_of_an_answer_in_one_piece_nothing_is_made_up() -> None:
    clock = FakeClock()
    answer = GenerationAnswer(Kind.CHAT, "m", clock)
    clock.advance(1.5)
    body = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": USAGE}
    _, told = whole(answer, body)

    metrics = {"total_duration": 1_500_000_000, "prompt_eval_count": 5, "eval_count": 3}
    assert {name: told[name] for name in metrics} == metrics
    assert not {"prompt_eval_duration", "eval_duration", "load_duration"} & told.keys()


def test_a_whole_answer_tells_all_of_it_in_one_record() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    message = {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [call]}
    choice = {"message": message, "finish_reason": "tool_calls", "logprobs": {"content": [SCORE]}}
    status, told = whole(chat(), {"choices": [choice], "usage": USAGE, "timings": TIMINGS})

    assert status == 200
    assert told["message"] == {
        "role": "assistant",
        "content": "",
        "thinking": "hm",
        "tool_calls": [{"id": "c", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}],
    }
    assert (told["done"], told["done_reason"], told["logprobs"]) == (True, "stop", SCORES)
    assert list(told)[:5] == ["model", "created_at", "message", "done", "done_reason"]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"error": {"message": "it broke", "code": 500}}, "it broke"),
        ({"object": "error", "message": "it broke", "code": 400}, "it broke"),
        ({"error": "it broke"}, "it broke"),
    ],
)
def test_an_error_in_a_stream_is_its_last_record(event: dict[str, Any], message: str) -> None:
    told = translated(stream(piece({"content": "a"}), event, piece({"content": "b"}, "stop"), b"[DONE]"))

    assert [each.get("done") for each in told] == [False, None]
    assert told[1] == {"error": message}


@pytest.mark.parametrize(("code", "status"), [(400, 400), (500, 500), (None, 500), ("x", 500), (200, 500)])
def test_an_error_before_all_else_is_an_error_answer(code: object, status: int) -> None:
    answer = chat()
    told = translated(stream({"error": {"message": "it broke", "code": code}}, b"[DONE]"), answer)

    assert told == [{"error": "it broke"}]
    assert (answer.status, answer.media_type) == (status, "application/json; charset=utf-8")


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_what_a_runtime_gave_up_is_an_error(reason: str) -> None:
    told = translated(stream(piece({"content": "a"}), piece(reason=reason), b"[DONE]"))

    assert told[-1] == {"error": f"the runtime gave the answer up ({reason})"}
    with pytest.raises(BadResponse):
        whole(chat(), {"choices": [{"message": {"content": "a"}, "finish_reason": reason}]})


@pytest.mark.parametrize("arguments", ["{", "[]", '"x"'])
def test_arguments_that_are_no_object_are_an_error(arguments: str) -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": arguments}}
    told = translated(stream(piece({"tool_calls": [call]}), piece(reason="tool_calls"), b"[DONE]"))

    assert "'f'" in told[-1]["error"]
    with pytest.raises(BadResponse):
        whole(chat(), {"choices": [{"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]})


def test_calls_are_told_in_the_order_of_their_indices() -> None:
    calls = [{"index": n, "function": {"name": "ab"[n], "arguments": "{}"}} for n in (1, 0)]
    told = translated(stream(piece({"tool_calls": calls}), piece(reason="tool_calls"), b"[DONE]"))

    assert [each["function"]["name"] for each in told[0]["message"]["tool_calls"]] == ["a", "b"]


def test_a_stream_may_be_as_long_as_it_likes() -> None:
    long = "x" * (1 << 20)
    told = translated([stream(piece({"content": long}))] * 10)

    assert sum(len(each["message"]["content"]) for each in told) == 10 << 20


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"choices":[]}', b"{}", b'"\xff"'])
def test_what_is_no_answer_is_not_told(body: bytes) -> None:
    with pytest.raises(BadResponse):
        whole(chat(), body)
    with pytest.raises(BadResponse):
        whole(EmbeddingsAnswer("m", FakeClock()), body)


@pytest.mark.parametrize("event", [b"{", b"[]", b"nothing", b'"\xff"'])
def test_an_event_that_is_no_object_breaks_the_stream(event: bytes) -> None:
    with pytest.raises(BadResponse):
        translated(stream(event))


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, {"error": {"message": "too long", "code": 400}}, (400, "too long")),
        (404, {"object": "error", "message": "no such model"}, (404, "no such model")),
        (422, {"detail": [{"msg": "no"}]}, (400, '{"detail":[{"msg":"no"}]}')),
        (503, {"error": {"message": "Loading model"}}, (503, "Loading model")),
        (500, b"Internal Server Error", (500, "Internal Server Error")),
        (502, b"", (502, "status 502")),
        (401, {"error": "Unauthorized"}, (401, "Unauthorized")),
        (404, {"detail": "Not Found"}, (501, RUNTIME_LACKS)),
        (
            404,
            {"error": {"message": "File Not Found"}},
            (501, RUNTIME_LACKS),
        ),
    ],
)
def test_errors_of_every_make_are_told_as_ollamas(status: int, body: object, told: tuple[int, str]) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()

    assert error_of(status, raw) == told
    assert whole(chat(), raw, status) == (told[0], {"error": told[1]})
    assert whole(PlainAnswer({"a": 1}), raw, status) == (told[0], {"error": told[1]})


def test_embeddings_keep_their_numbers_and_the_order_of_their_inputs() -> None:
    rows = b'[{"index":1,"embedding":[1e-9,2]},{"embedding":[0.10,3],"index":0}]'
    body = b'{"data":' + rows + b',"usage":{"prompt_tokens":4}}'
    answer = EmbeddingsAnswer("m", FakeClock())
    answer.begin(200, JSON)

    assert answer.feed(body) == b""
    assert answer.end() == (
        b'{"model":"m","embeddings":[[0.10,3],[1e-9,2]],"total_duration":0,"prompt_eval_count":4}'
    )


def test_nothing_is_held_without_bound() -> None:
    line = b"x" * (1 << 20)
    answer = chat()
    answer.begin(200, SSE)
    fed = (answer.feed(line) for _ in range(10))
    with pytest.raises(BadResponse):
        list(fed)

    error = chat()
    error.begin(500, JSON)
    with pytest.raises(BadResponse):
        error.feed(line)

    calls = [{"index": n, "function": {"name": "f", "arguments": "{}"}} for n in range(200)]
    with pytest.raises(BadResponse):
        translated(stream(piece({"tool_calls": calls})))
    endless = piece({"tool_calls": [{"index": 0, "function": {"arguments": "x" * (1 << 20)}}]})
    with pytest.raises(BadResponse):
        translated(stream(*[endless] * 5))
