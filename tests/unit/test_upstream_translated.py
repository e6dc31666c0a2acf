"""An exchange whose answer is translated: when its head is told, what breaks it, and what it waits for."""

import asyncio
import json

import pytest

from balancer.core.operation import Kind
from balancer.errors import BadResponse, ConnectionLost, InstanceStalled, Unfinished
from balancer.protocol.translation.generation import GenerationAnswer
from balancer.upstream.exchange import Exchange, ResponseHead
from balancer.upstream.stream_memory import StreamMemory
from balancer.upstream.translated import TranslatedExchange, exchange_of
from tests.unit.unit_support import FakeClock, LoopClock, run_virtually

TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
NOTHING = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n: alive\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def begun(
    status: int = 200, media_type: str = "text/event-stream", closed: list[str] | None = None
) -> Exchange:
    """An exchange whose head has come, but is not told."""
    it = TranslatedExchange(
        GenerationAnswer(Kind.CHAT, "m", FakeClock()),
        buffer_bytes=1 << 20,
        cancel=lambda: (closed if closed is not None else []).append("closed"),
        read=lambda _on: None,
        memory=StreamMemory(1 << 20),
    )
    headers = (("Server", "uvicorn"), ("Retry-After", "7"), ("Content-Type", media_type))
    it.receive_head(
        ResponseHead(
            status=status,
            reason="",
            headers=headers,
            media_type=media_type,
            content_length=None,
            chunked=True,
        )
    )
    return it


def give(it: Exchange, data: bytes) -> None:
    it.receive(data)
    it.end_chunk()


async def test_the_head_is_told_with_the_first_record() -> None:
    it = begun()
    give(it, NOTHING)
    assert not it.answered

    give(it, TOKEN)
    head = await it.response()

    assert (head.status, head.media_type, head.streams) == (200, "application/x-ndjson", True)
    assert head.headers == (("Content-Type", "application/x-ndjson"), ("Retry-After", "7"))
    assert json.loads(await it.next_chunk() or b"")["message"]["content"] == "a"


async def test_an_answer_that_fails_before_its_first_record_can_go_elsewhere() -> None:
    it = begun()
    give(it, NOTHING)
    it.fail(ConnectionLost("lost"))

    with pytest.raises(ConnectionLost):
        await it.begun()


async def test_an_answer_that_ends_without_a_record_has_not_begun() -> None:
    it = begun()
    give(it, NOTHING)
    it.finish()

    with pytest.raises(Unfinished):
        await it.begun()


async def test_an_answer_in_one_piece_is_told_at_its_end() -> None:
    it = begun(media_type="application/json")
    give(it, b'{"choices":[{"message":{"content":"a"},"finish_')
    assert not it.answered

    give(it, b'reason":"stop"}]}')
    it.finish()
    head = await it.begun()

    assert (head.status, head.media_type) == (200, "application/json")
    assert json.loads(await it.next_chunk() or b"")["done"] is True
    assert await it.next_chunk() is None


@pytest.mark.parametrize("body", [b"<html>", b""])
async def test_what_is_no_answer_breaks_it(body: bytes) -> None:
    closed: list[str] = []
    it = begun(media_type="application/json", closed=closed)
    it.receive(body)
    it.finish()

    with pytest.raises(BadResponse):
        await it.begun()
    assert closed == ["closed"]


async def test_what_is_no_event_breaks_a_stream_and_nothing_follows() -> None:
    closed: list[str] = []
    it = begun(closed=closed)
    give(it, TOKEN)
    give(it, b"data: {\n\n")
    give(it, LAST)
    it.finish()

    assert await it.next_chunk()
    with pytest.raises(BadResponse):
        await it.next_chunk()
    assert closed == ["closed"]


async def test_records_flow_on_in_the_moment_in_which_their_events_are_in() -> None:
    it, came = begun(), list[bytes]()
    give(it, TOKEN)
    flowing = asyncio.create_task(it.flow(came.append))
    await asyncio.sleep(0)

    give(it, TOKEN)
    assert len(came) == 2
    give(it, LAST)
    it.finish()
    await flowing
    assert [json.loads(each)["done"] for each in came] == [False, False, True]


def test_comments_keep_a_stream_alive_and_silence_ends_it() -> None:
    async def main(clock: LoopClock) -> None:
        it = begun()
        give(it, TOKEN)
        assert await it.next_chunk()
        it.end_when_silent(60.0)
        for _ in range(5):
            await asyncio.sleep(50)
            it.receive_chunk(b": alive\n\n")
        alive = clock.monotonic()

        with pytest.raises(InstanceStalled):
            await it.next_chunk()
        assert clock.monotonic() == alive + 60

    run_virtually(main)


async def test_without_a_translation_an_exchange_is_as_ever() -> None:
    plain = exchange_of(
        None, buffer_bytes=1, cancel=lambda: None, read=lambda _on: None, memory=StreamMemory(1)
    )

    assert type(plain) is Exchange
