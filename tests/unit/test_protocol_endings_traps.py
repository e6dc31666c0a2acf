"""Answers made to look finished, or unfinished, by what they say."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.core.operation import Dialect, Kind, Operation
from balancer.protocol.endings import HEAD_BYTES, TAIL_BYTES, Counters, Ending, Tail, judge, read_counters
from tests.unit.unit_support import fed

SIZES = [1, 13, 1000, 10_000_000]
TRAPS = [
    '"done":true',
    '"done":true}',
    '{"model":"x","done":true}',
    '","done":true,"eval_count":7}',
    "data: [DONE]",
    "\n\ndata: [DONE]\n\n",
    'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    '{"error":"x"}',
    '\n{"error":"x"}\n',
    '"usage":{"prompt_tokens":9,"completion_tokens":9}',
    '"type":"response.completed"}',
    '\\"done\\":true',
    '{"status":"success"}',
]


def stream(kind: Kind, dialect: Dialect) -> Operation:
    return Operation(kind=kind, dialect=dialect, upstream_path="/", stream=True)


def line(**fields: object) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def event(name: str, **fields: object) -> bytes:
    return f"event: {name}\ndata: ".encode() + line(type=name, **fields) + b"\n"


CHAT = stream(Kind.CHAT, Dialect.OLLAMA)
GENERATE = stream(Kind.GENERATE, Dialect.OLLAMA)
LAST = line(
    model="m",
    created_at="t",
    message={"role": "assistant", "content": ""},
    done=True,
    done_reason="stop",
    eval_count=3,
)


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("size", SIZES)
def test_native_text_never_ends_an_answer(trap: str, size: int) -> None:
    said = line(model="m", message={"role": "assistant", "content": trap}, done=False)
    generated = line(model="m", response=trap, done=False)

    assert judge(CHAT, fed(said, size=size)) is Ending.UNFINISHED
    assert judge(CHAT, fed(said + LAST, size=size)) is Ending.WHOLE
    assert judge(GENERATE, fed(generated, size=size)) is Ending.UNFINISHED


@pytest.mark.parametrize(
    "arguments",
    [
        {"done": True},
        {"x": {"done": True}},
        {"done": True, "eval_count": 9},
        {"error": "x"},
        {"a": '"done":true'},
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_a_tool_call_that_says_done_never_ends_an_answer(arguments: object, size: int) -> None:
    message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": arguments}}],
    }
    called = line(model="m", message=message, done=False)

    assert judge(CHAT, fed(called, size=size)) is Ending.UNFINISHED
    assert Counters() == read_counters(CHAT, fed(called, size=size))
    assert judge(CHAT, fed(called + LAST, size=size)) is Ending.WHOLE
    assert (
        judge(CHAT, fed(line(model="m", message=message, done=True, done_reason="stop"), size=size))
        is Ending.WHOLE
    )


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_tool_call_far_larger_than_the_tail_hides_nothing(done: bool, size: int) -> None:
    arguments = {"text": '"done":true ' * 2000, "done": not done}
    message = {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    body = line(model="m", created_at="t", message=message, done=done)

    assert judge(CHAT, fed(body, size=max(size, 100))) is (Ending.WHOLE if done else Ending.UNFINISHED)


@pytest.mark.parametrize("size", [100, 4096, 10_000_000])
def test_a_context_far_larger_than_the_tail_hides_neither_end_nor_counters(size: int) -> None:
    before = line(model="m", created_at="t", response="a", done=False)
    last = line(
        model="m",
        created_at="t",
        response="",
        done=True,
        done_reason="stop",
        context=list(range(100_000)),
        total_duration=5_000_000_000,
        load_duration=1_500_000_000,
        prompt_eval_count=11,
        prompt_eval_duration=250_000_000,
        eval_count=7,
        eval_duration=700_000_000,
    )
    tail = fed(before + last, size=size)

    assert judge(GENERATE, tail) is Ending.WHOLE
    assert Counters(11, 7, 1.5, 0.25, 0.7, 5.0) == read_counters(GENERATE, tail)
    assert judge(GENERATE, fed((before + last)[:-200], size=size)) is Ending.UNFINISHED


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("size", SIZES)
def test_openai_text_never_ends_an_answer(trap: str, size: int) -> None:
    operation = stream(Kind.CHAT, Dialect.OPENAI)
    said = b"data: " + line(choices=[{"delta": {"content": trap}}]) + b"\n"

    assert judge(operation, fed(said, size=size)) is Ending.UNFINISHED
    assert judge(operation, fed(said + b"data: [DONE]\n\n", size=size)) is Ending.WHOLE
    assert Counters() == read_counters(operation, fed(said, size=size))


def test_a_line_cut_off_behind_the_text_of_the_end_is_unfinished() -> None:
    operation = stream(Kind.CHAT, Dialect.OPENAI)

    assert judge(operation, fed(b'data: {"choices":[{"delta":{"content":"data: [DONE]')) is Ending.UNFINISHED


@pytest.mark.parametrize("dialect", [Dialect.ANTHROPIC, Dialect.OPENAI])
@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("size", SIZES)
def test_text_in_an_event_never_ends_an_answer(dialect: Dialect, trap: str, size: int) -> None:
    operation = stream(Kind.RESPONSE, dialect)
    said = event("content_block_delta", delta={"text": trap})

    assert judge(operation, fed(said, size=size)) is Ending.UNFINISHED
    assert judge(operation, fed(said + event("message_stop"), size=size)) is Ending.WHOLE


@pytest.mark.parametrize("name", ["response.completed", "response.incomplete", "message_stop"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("type_first", [True, False])
def test_a_last_event_far_larger_than_the_tail_is_whole(name: str, size: int, type_first: bool) -> None:
    fields = {"response": {"output": "word " * 2000, "usage": {"input_tokens": 5, "output_tokens": 6}}}
    ordered = {"type": name, **fields} if type_first else {**fields, "type": name}
    body = f"event: {name}\ndata: ".encode() + line(**ordered) + b"\n"
    tail = fed(event("response.created") + body, size=max(size, 64))

    assert judge(stream(Kind.RESPONSE, Dialect.OPENAI), tail) is Ending.WHOLE
    assert Counters(5, 6) == read_counters(stream(Kind.RESPONSE, Dialect.OPENAI), tail)


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_an_event_without_the_blank_line_that_ends_it_is_unfinished(ending: bytes) -> None:
    body = b'event: message_stop\ndata: {"type":"message_stop"}' + ending

    assert judge(stream(Kind.CHAT, Dialect.ANTHROPIC), fed(body)) is Ending.UNFINISHED


def test_progress_that_mentions_success_is_not_success() -> None:
    pull = stream(Kind.MANAGE, Dialect.OLLAMA)

    assert judge(pull, fed(line(status='say "status":"success"'))) is Ending.UNFINISHED
    assert judge(pull, fed(b'{"status":"success"')) is Ending.UNFINISHED
    assert judge(pull, fed(line(status="success"))) is Ending.WHOLE


def test_a_single_load_answer_is_whole_without_a_line_end() -> None:
    body = line(model="m", created_at="t", response="", done=True, done_reason="load").rstrip()

    assert judge(GENERATE, fed(body)) is Ending.WHOLE


@pytest.mark.parametrize("filler", [1, 1000])
def test_a_stream_that_breaks_off_behind_nested_arguments_is_unfinished(filler: int) -> None:
    call = {"function": {"name": "x" * filler, "arguments": {"done": True}}}
    record = line(model="m", message={"role": "assistant", "tool_calls": [call]}, done=False)
    begun = record[: record.index(b'"done":true}') + len(b'"done":true}')]

    assert judge(GENERATE, fed(line(model="m", done=False) + begun)) is Ending.UNFINISHED


def test_a_success_within_a_record_is_no_success_of_the_pull() -> None:
    pull = stream(Kind.MANAGE, Dialect.OLLAMA)

    assert judge(pull, fed(line(status="pulling", last={"status": "success"}))) is Ending.UNFINISHED


@pytest.mark.parametrize("digits", [19, 400])
def test_a_count_beyond_all_bounds_is_not_counted(digits: int) -> None:
    record = line(done=True, prompt_eval_count=7, eval_duration=10**digits, eval_count=10**digits)

    assert read_counters(GENERATE, fed(record)) == Counters(prompt_tokens=7)


@settings(max_examples=200)
@given(st.lists(st.sampled_from([b"\n", b"\r", b"\n\r\r", b"a", b"a\n\r", b"x" * 300]), max_size=12))
def test_a_tail_is_the_same_however_its_line_ends_were_cut(pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    tail = Tail()
    for each in pieces:
        tail.feed(each)

    assert not body or tail.last_line == fed(body, size=len(body)).last_line


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from([b"\n", b"\r\n", b"a", b"bc", b"x" * 300, b"y" * 1500, b"z" * 3000]), max_size=20
    ),
    st.integers(1, 4000),
)
def test_a_tail_is_the_end_of_the_body_and_the_begin_of_its_last_line(pieces: list[bytes], size: int) -> None:
    body = b"".join(pieces)
    tail = fed(body, size=size) if body else Tail()
    lines = [each for each in body.replace(b"\r", b"").split(b"\n") if each]

    assert body[-TAIL_BYTES:] == tail.data
    assert len(tail.head) <= HEAD_BYTES
    assert (lines[-1][:HEAD_BYTES] if lines else b"") == tail.head.replace(b"\r", b"").rstrip(b"\n")


@settings(max_examples=200)
@given(st.binary(max_size=3000), st.integers(1, 500))
def test_no_answer_crashes_the_verdict(body: bytes, size: int) -> None:
    tail = fed(body, size=size)

    for dialect in Dialect:
        for kind in Kind:
            assert judge(stream(kind, dialect), tail) in Ending
            read_counters(stream(kind, dialect), tail)


@pytest.mark.parametrize("digits", [19, 400, 900])
def test_a_number_that_counts_nothing_is_no_counter(digits: int) -> None:
    """No float holds the larger ones, so to add them up would fail."""
    number = b"9" * digits
    numbers = b'"eval_count":%b,"eval_duration":%b,"prompt_eval_count":7' % (number, number)
    native = fed(b'{"model":"m","done":true,%b}\n' % numbers)
    usage = fed(b'data: {"usage":{"prompt_tokens":7,"completion_tokens":%b}}\n\ndata: [DONE]\n\n' % number)

    assert Counters(7) == read_counters(GENERATE, native)
    assert Counters(7) == read_counters(stream(Kind.CHAT, Dialect.OPENAI), usage)
