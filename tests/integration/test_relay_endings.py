"""How an answer that the instance did not complete is told: in the caller's dialect, and by its end."""

import json
from dataclasses import dataclass

import pytest

from tests.fakes.raw_client import Answer
from tests.fakes.running_balancer import Running, balancing
from tests.fakes.scripted_instance import (
    DONE,
    END,
    Close,
    Reset,
    ScriptedInstance,
    Send,
    Step,
    Turn,
    chunk,
    head,
)

pytestmark = pytest.mark.both_sinks

NDJSON = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
SSE = head(200, "Content-Type: text/event-stream", "Transfer-Encoding: chunked")


@dataclass(frozen=True)
class Stream:
    """A stream of one dialect: its first record, its proper last one, and what a dead runner leaves."""

    path: str
    opening: bytes
    record: bytes
    last: bytes
    dead: bytes = b""

    @property
    def body(self) -> dict[str, object]:
        return {"model": "m", "stream": True, "prompt": "hi", "messages": [], "input": "hi"}


NATIVE_GENERATE = Stream("/api/generate", NDJSON, b'{"model":"m","response":"a","done":false}\n', DONE)
NATIVE_CHAT = Stream(
    "/api/chat",
    NDJSON,
    b'{"model":"m","message":{"role":"assistant","content":"\\"done\\":true"},"done":false}\n',
    b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}\n',
)
OPENAI_CHAT = Stream(
    "/v1/chat/completions",
    SSE,
    b'data: {"id":"1","object":"chat.completion.chunk","model":"m","choices":[]}\n\n',
    b'data: {"id":"1","choices":[],"usage":{}}\n\ndata: [DONE]\n\n',
    dead=b'data: {"id":"1","object":"chat.completion.chunk","model":"","choices":[{"text":null}]}\n\n',
)
OPENAI_TEXT = Stream(
    "/v1/completions",
    SSE,
    b'data: {"id":"1","object":"text_completion","model":"m","choices":[{"text":"[DONE]"}]}\n\n',
    b"data: [DONE]\n\n",
    dead=b'data: {"id":"1","object":"text_completion","model":"","choices":[{"text":""}]}\n\n',
)
RESPONSES = Stream(
    "/v1/responses",
    SSE,
    b'event: response.created\ndata: {"type":"response.created","response":{"model":"m"}}\n\n',
    b'event: response.completed\ndata: {"type":"response.completed","response":{"model":"m"}}\n\n',
)
MESSAGES = Stream(
    "/v1/messages",
    SSE,
    b'event: message_start\ndata: {"type":"message_start","message":{"model":"m"}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)
STREAMS = {
    each.path: each for each in (NATIVE_GENERATE, NATIVE_CHAT, OPENAI_CHAT, OPENAI_TEXT, RESPONSES, MESSAGES)
}

every_stream = pytest.mark.parametrize("path", STREAMS)


async def asked(running: Running, one: ScriptedInstance, stream: Stream, *steps: Step) -> Answer:
    one.play(*steps)
    return await running.ask(stream.path, stream.body)


def tells_failure(stream: Stream, answer: Answer, last: bytes, text: str) -> bool:
    """Whether the last record is an error of the dialect that a client can read."""
    match stream.path.split("/")[1:]:
        case ["api", *_]:
            return text in json.loads(last)["error"]
        case ["v1", "messages"]:
            event, data = last.decode().rstrip("\n").split("\n")
            told = json.loads(data.removeprefix("data: "))
            return (
                event == "event: error"
                and told["type"] == "error"
                and text in told["error"]["message"]
                and told["request_id"] == answer.header("x-request-id")
            )
        case _:
            told = json.loads(last.decode().removeprefix("data: "))
            return last.endswith(b"\n\n") and text in told["error"]["message"]


@every_stream
async def test_complete_stream_ends_properly(path: str) -> None:
    stream = STREAMS[path]
    async with ScriptedInstance().running() as one, balancing(one) as running:
        sent = stream.opening + chunk(stream.record) + chunk(stream.last) + END

        answer = await asked(running, one, stream, Send(sent))

        assert answer.whole
        assert answer.chunks == (stream.record, stream.last)
        assert running.logged("request_finished")[-1]["outcome"] == "ok"


@every_stream
@pytest.mark.parametrize("end", [Close(), Reset()])
async def test_stream_without_its_end_gets_an_error_record_and_no_proper_end(
    path: str, end: Close | Reset
) -> None:
    stream = STREAMS[path]
    async with ScriptedInstance().running() as one, balancing(one) as running:
        sent = stream.opening + chunk(stream.record)

        answer = await asked(running, one, stream, Send(sent), Turn(), end)

        assert (answer.status, answer.whole) == (200, False)
        assert answer.chunks[0] == stream.record
        assert len(answer.chunks) == 2
        assert tells_failure(stream, answer, answer.chunks[-1], "closed the connection")
        assert running.logged("request_finished")[-1]["outcome"] == "truncated"


@every_stream
async def test_stream_cut_inside_a_record_gets_an_error_on_a_line_of_its_own(path: str) -> None:
    stream = STREAMS[path]
    async with ScriptedInstance().running() as one, balancing(one) as running:
        half = stream.record[:12]
        sent = stream.opening + chunk(stream.record) + b"%x\r\n" % len(stream.record) + half

        answer = await asked(running, one, stream, Send(sent), Turn(), Close())

        separator = b"\n" if stream.opening is NDJSON else b"\n\n"
        told, _, error = answer.body.rpartition(half + separator)
        assert not answer.whole
        assert told == stream.record
        assert tells_failure(stream, answer, error, "closed the connection")


@every_stream
async def test_stream_that_a_dead_runner_left_is_not_passed_for_whole(path: str) -> None:
    """The instance ends its body properly then; only the last record is missing."""
    stream = STREAMS[path]
    async with ScriptedInstance().running() as one, balancing(one) as running:
        dead = chunk(stream.dead) if stream.dead else b""

        answer = await asked(running, one, stream, Send(stream.opening + chunk(stream.record) + dead + END))

        assert not answer.whole
        assert answer.body.startswith(stream.record + stream.dead)
        assert tells_failure(stream, answer, answer.chunks[-1], "before it was complete")
        assert running.logged("request_finished")[-1]["outcome"] == "unfinished"


@every_stream
async def test_stream_without_any_record_is_not_passed_for_whole(path: str) -> None:
    stream = STREAMS[path]
    async with ScriptedInstance().running() as one, balancing(one) as running:
        answer = await asked(running, one, stream, Send(stream.opening + END))

        assert answer.status == 502
        assert b"before it had begun" in answer.body
        assert running.logged("request_finished")[-1]["outcome"] == "unfinished"


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_error_line_of_the_instance_is_the_last_word(path: str) -> None:
    stream = STREAMS[path]
    error = b'{"error":"an error was encountered while running the model: unexpected EOF"}\n'
    async with ScriptedInstance().running() as one, balancing(one) as running:
        sent = stream.opening + chunk(stream.record) + chunk(error) + END

        answer = await asked(running, one, stream, Send(sent))

        assert answer.whole
        assert answer.chunks == (stream.record, error)
        assert running.logged("request_finished")[-1]["outcome"] == "error_record"


@pytest.mark.parametrize("end", [Close(), Reset()])
@pytest.mark.parametrize(
    "part",
    [
        head(200, "Content-Type: application/json", "Content-Length: 50") + b'{"half":',
        head(200, "Content-Type: application/json", "Transfer-Encoding: chunked") + chunk(b'{"half":'),
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages", "/api/show"])
async def test_unary_answer_cut_short_does_not_look_whole(path: str, part: bytes, end: Close | Reset) -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(part), Turn(), end)

        answer = await running.ask(path, {"model": "m", "stream": False, "messages": []})

        assert (answer.status, answer.whole) == (200, False)
        assert answer.body == b'{"half":'


async def test_unary_answer_to_a_streaming_request_is_whole_by_its_length() -> None:
    """A load, or a rendered prompt, is answered in one piece whatever `stream` says."""
    rendered = b'{"model":"m","created_at":"now","_debug_info":{"rendered_template":"hi"}}'
    async with ScriptedInstance().running() as one, balancing(one) as running:
        sent = head(200, "Content-Type: application/json", f"Content-Length: {len(rendered)}") + rendered

        answer = await asked(running, one, NATIVE_CHAT, Send(sent))

        assert answer.whole
        assert answer.body == rendered
        assert running.logged("request_finished")[-1]["outcome"] == "ok"


async def test_broken_chunk_framing_ends_the_stream_with_an_error() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        sent = NDJSON + chunk(NATIVE_GENERATE.record)

        answer = await asked(running, one, NATIVE_GENERATE, Send(sent), Turn(), Send(b"zz\r\n"))

        assert not answer.whole
        assert tells_failure(NATIVE_GENERATE, answer, answer.chunks[-1], "framing")


async def test_stream_cut_for_a_client_of_http_1_0_ends_with_the_error() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(NDJSON + chunk(NATIVE_GENERATE.record)), Turn(), Close())

        answer = await running.ask("/api/generate", NATIVE_GENERATE.body, version="1.0")

        first, last = answer.body.splitlines(keepends=True)
        assert first == NATIVE_GENERATE.record
        assert "error" in json.loads(last)
