"""A client's connection over many requests: heads in time, answers in turn, and nothing left in memory."""

import asyncio
from random import Random

import pytest

from tests.fakes.raw_client import Cut, request
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import (
    DONE,
    END,
    ReadBody,
    ScriptedInstance,
    Send,
    Stall,
    Turn,
    Wait,
    chunk,
    head,
    whole,
)

pytestmark = pytest.mark.both_sinks

GENERATE = {"model": "m", "prompt": "hi"}
ASKED = request("/api/generate", GENERATE)
STREAMED = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
LINE = b'{"model":"m","response":"a","done":false}\n'
PIECE = b'{"response":"%b","done":false}\n' % (b"x" * 32_000)
SOON = {"header_seconds": 0.2}


async def head_seconds_pass(running: Running) -> None:
    """As long as a head may take: a connection that is silent from now on is closed then."""
    async with running.client() as silent:
        assert await silent.rest() == b""


@pytest.mark.parametrize("parts", [(b"xxxxx", b"xxxxx"), (b"xxxxxxxxxx",), (b"x", b"xxxxxxxxx")])
async def test_rest_of_a_body_behind_its_answer_begins_no_head(parts: tuple[bytes, ...]) -> None:
    async with (
        ScriptedInstance().running() as one,
        balancing(one, limits=SOON) as running,
        running.client() as client,
    ):
        await client.send(request("/nowhere", None, "Content-Length: 10"))
        assert (await client.answer()).status == 404
        for part in parts:
            await client.send(part)
            await head_seconds_pass(running)

        await client.send(ASKED)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("with_the_first", [0, 9])
async def test_second_head_that_is_never_ended_is_told_408(with_the_first: int) -> None:
    half = b"POST /api/generate HTT"
    async with (
        ScriptedInstance().running() as one,
        balancing(one, limits=SOON) as running,
        running.client() as client,
    ):
        await client.send(ASKED + half[:with_the_first])
        assert (await client.answer()).status == 200
        await head_seconds_pass(running)

        await client.send(half[with_the_first:])

        assert (await client.answer()).status == 408
        assert await client.rest() == b""


async def test_head_in_time_is_followed_by_a_body_and_an_answer_that_take_longer() -> None:
    go_on = asyncio.Event()
    async with ScriptedInstance().running() as one, balancing(one, limits=SOON) as running:
        one.play(Send(STREAMED + chunk(LINE)), Wait(go_on), Send(chunk(DONE) + END))
        async with running.client() as client:
            for part in (ASKED[:40], ASKED[40:-5]):  # the second ends the head
                await client.send(part)
            await head_seconds_pass(running)
            await client.send(ASKED[-5:])
            opening = await client.head()
            await head_seconds_pass(running)
            go_on.set()

            assert (await client.body_of(opening)).chunks == (LINE, DONE)
            await head_seconds_pass(running)
            await client.send(ASKED)
            assert (await client.answer()).status == 200


async def test_requests_sent_at_once_are_answered_in_turn() -> None:
    async with (
        ScriptedInstance().running() as one,
        balancing(one) as running,
        running.client() as client,
    ):
        one.play(Send(STREAMED + chunk(LINE)), Turn(), Send(chunk(DONE) + END))
        one.play(Send(whole(b"[2]")))
        one.play(Send(STREAMED + chunk(DONE) + END))
        await client.send(ASKED * 3 + request("/api/version", None, method="GET"))

        came = [(await client.answer()).chunks for _ in range(4)]

        assert came == [(LINE, DONE), (b"[2]",), (DONE,), (b'{"version":"0.33.0"}',)]


async def test_one_connection_to_an_instance_serves_one_client_after_another() -> None:
    async with (
        ScriptedInstance().running() as one,
        balancing(one) as running,
        running.client() as client,
    ):
        pool = running.balancer.client.pool(one.url)
        for number in range(20):
            one.play(Send(STREAMED + chunk(LINE)), Turn(), Send(chunk(DONE) + END))
            if number % 2:
                await client.send(ASKED)
                assert (await client.answer()).chunks == (LINE, DONE)
            else:
                assert (await running.ask("/api/generate", GENERATE)).chunks == (LINE, DONE)

        assert (pool.connects, len(one.connections)) == (1, 1)


@pytest.mark.parametrize("apart", [False, True])
async def test_each_chunk_is_one_chunk_for_the_client(apart: bool) -> None:
    """However the instance's bytes came: chunks in one read, or one chunk in many."""
    chunks = [b"{}\n", LINE * 3, b"x", *(b'{"n":%d}\n' % number for number in range(40)), PIECE, DONE]
    sent = b"".join(map(chunk, chunks)) + END
    step = 997 if apart else len(sent)
    pieces = [sent[at : at + step] for at in range(0, len(sent), step)]
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(STREAMED), Turn(), *(each for piece in pieces for each in (Send(piece), Turn())))

        assert (await running.ask("/api/generate", GENERATE)).chunks == tuple(chunks)


async def leave_unread(running: Running, one: ScriptedInstance, *, pieces: int, ends: bool) -> None:
    """As `client_far_behind`, for as many pieces: all of them are in the balancer, or beyond it."""
    end = (Send(chunk(DONE) + END),) if ends else (Stall(),)
    one.play(Send(STREAMED), *[Send(chunk(PIECE))] * pieces, *end)
    async with running.client() as client:
        client.pause()
        await client.send(ASKED)
        seen = await one.seen(len(one.requests) + 1)
        await until(lambda: seen.connection.sent_bytes >= pieces * len(PIECE))
        await until(lambda: running.balancer.stream_memory.held_bytes > pieces * len(PIECE) // 4)
        if ends:
            await until(lambda: not running.balancer.dispatcher.leases)
        memory = running.balancer.stream_memory
        (stream,) = memory._held
        memory.limit_bytes = 1
        memory.note(stream)
        await until(lambda: running.idle)


@pytest.mark.parametrize("ends", [False, True])
async def test_stream_cut_for_the_memory_of_all_is_told_as_a_slow_readers(ends: bool) -> None:
    """The instance may be done with it, and only the client be left to read."""
    limits = {"stream_buffer_bytes": "128MiB"}
    async with ScriptedInstance().running() as one, balancing(one, limits=limits) as running:
        await leave_unread(running, one, pieces=600, ends=ends)

        assert [each["outcome"] for each in running.logged("request_finished")] == ["slow_reader"]
        assert running.balancer.stream_memory.held_bytes == 0
        assert (await running.ask("/api/generate", GENERATE)).status == 200


async def test_whoever_leaves_most_unread_is_cut_first() -> None:
    limits = {"stream_buffer_bytes": "128MiB", "stream_memory_bytes": "24MiB"}
    go_on = asyncio.Event()
    async with ScriptedInstance().running() as one, balancing(one, limits=limits) as running:
        one.play(Send(STREAMED), *[Send(chunk(PIECE))] * 400, Send(chunk(DONE) + END))
        one.play(
            Send(STREAMED), *[Send(chunk(PIECE))] * 500, Wait(go_on), *[Send(chunk(PIECE))] * 400, Stall()
        )
        async with running.client() as less, running.client() as more:
            for client, count in ((less, 1), (more, 2)):
                client.pause()
                await client.send(ASKED)
                await one.seen(count)
            sizes = [400 * len(PIECE), 500 * len(PIECE)]
            await until(
                lambda: all(a.connection.sent_bytes >= b for a, b in zip(one.requests, sizes, strict=True))
            )
            go_on.set()

            await until(one.requests[1].connection.closed.is_set)
            less.resume()
            answer = await less.answer()

        assert (answer.whole, len(answer.chunks)) == (True, 401)
        await until(lambda: running.idle)
        assert running.balancer.stream_memory.held_bytes == 0


async def test_clients_that_leave_at_any_moment_leave_nothing_behind() -> None:
    seed = 14
    random = Random(seed)
    begin, end = (Send(STREAMED + chunk(LINE)), Turn()), Send(chunk(DONE) + END)
    stream = (ReadBody(), *begin, *[Send(chunk(PIECE)), Turn()] * 4, end)
    size = len(STREAMED) + 4 * len(PIECE)

    async def ask_and_leave(running: Running) -> None:
        async with running.client() as client:
            sent = ASKED * random.choice((1, 1, 2))
            await client.send(sent[: random.choice((len(sent), random.randrange(1, len(sent))))])
            if random.random() < 0.5:
                client.pause()
            try:
                async with asyncio.timeout(random.random() / 20):
                    await client._exactly(random.randrange(1, size))
            except (Cut, TimeoutError):
                pass
            if random.random() < 0.5:
                client.reset()

    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.otherwise = lambda _request: stream
        for _ in range(6):
            await asyncio.gather(*(ask_and_leave(running) for _ in range(15)))
        await until(lambda: running.idle)
        await until(lambda: running.balancer.listener.connections == 0)

        assert running.balancer.stream_memory.held_bytes == 0, seed
        assert not running.balancer.stream_memory._held
        web = running.balancer.listener._web
        assert web is not None
        assert not web._heads._since
        assert (await running.ask("/api/generate", GENERATE)).chunks[-1] == DONE


async def test_answer_to_a_whole_request_is_whole_though_the_chunks_of_its_body_were_many() -> None:
    body = b'{"model":"m","prompt":"hi"}'
    lines = ("Transfer-Encoding: chunked",)
    async with (
        ScriptedInstance().running() as one,
        balancing(one) as running,
        running.client() as client,
    ):
        for pieces in ((body,), [body[at : at + 1] for at in range(len(body))]):
            await client.send(request("/api/generate", None, *lines))
            for piece in pieces:
                await client.send(chunk(piece))
            await client.send(END)
            assert (await client.answer()).status == 200

        chunked_at_once = b"".join(chunk(body[at : at + 3]) for at in range(0, len(body), 3)) + END
        await client.send(request("/api/generate", None, *lines) + chunked_at_once)
        assert (await client.answer()).status == 200

    assert [each.body for each in one.requests] == [body] * 3
