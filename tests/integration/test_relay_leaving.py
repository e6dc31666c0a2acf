"""Clients that leave, at every stage, and clients that stop reading: neither may hold an instance."""

import asyncio

import pytest

from tests.fakes.raw_client import RawClient, request
from tests.fakes.running_balancer import Running, balancing, until
from tests.fakes.scripted_instance import (
    DONE,
    END,
    ReadBody,
    ScriptedInstance,
    Send,
    Stall,
    Wait,
    chunk,
    chunked,
    head,
)

pytestmark = pytest.mark.both_sinks

GENERATE = {"model": "m", "prompt": "hi"}
STREAMED = head(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
LINE = b'{"model":"m","response":"a","done":false}\n'
ONE_SLOT = {"slots": 1}

every_way = pytest.mark.parametrize("way", ["close", "reset", "half-close"])


async def leave(client: RawClient, way: str) -> None:
    match way:
        case "close":
            client.writer.close()
        case "reset":
            client.reset()
        case _:
            client.writer.write_eof()


def outcomes(running: Running) -> list[str]:
    return [each["outcome"] for each in running.logged("request_finished")]


@every_way
async def test_leaving_while_queued_takes_the_request_out(way: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT) as running:
        go_on = asyncio.Event()
        one.play(Wait(go_on), Send(chunked(DONE)))
        async with running.client() as first, running.client() as second, running.client() as third:
            await first.send(request("/api/generate", GENERATE))
            await one.seen(1)
            await second.send(request("/api/generate", {**GENERATE, "prompt": "left"}))
            await until(lambda: len(running.balancer.queue) == 1)
            await third.send(request("/api/generate", {**GENERATE, "prompt": "stayed"}))
            await until(lambda: len(running.balancer.queue) == 2)

            await leave(second, way)

            await until(lambda: len(running.balancer.queue) == 1)
            go_on.set()
            assert (await first.answer()).whole
            assert (await third.answer()).status == 200

        assert [b"left" in each.body for each in one.requests] == [False, False]
        assert sorted(outcomes(running)) == ["cancelled", "ok", "ok"]


@every_way
async def test_leaving_before_the_first_byte_closes_the_way_to_the_instance(way: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT) as running:
        one.play(Stall())
        async with running.client() as client:
            await client.send(request("/api/generate", GENERATE))
            seen = await one.seen(1)

            await leave(client, way)

            await until(seen.connection.closed.is_set)
            await until(lambda: running.idle)

        assert outcomes(running) == ["cancelled"]
        assert (await running.ask("/api/generate", GENERATE)).status == 200


@every_way
async def test_leaving_in_the_middle_of_a_stream_closes_the_way_to_the_instance(way: str) -> None:
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT) as running:
        one.play(Send(STREAMED + chunk(LINE)), Stall())
        async with running.client() as client:
            await client.send(request("/api/generate", GENERATE))
            await client.head()
            assert await client.chunk() == LINE
            (seen,) = one.requests

            await leave(client, way)

            await until(seen.connection.closed.is_set)
            await until(lambda: running.idle)

        assert outcomes(running) == ["cancelled"]
        assert (await running.ask("/api/generate", GENERATE)).status == 200


async def test_leaving_while_sending_the_body_reaches_no_instance() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        async with running.client() as client:
            await client.send(request("/api/generate", b'{"model":', "Content-Length: 100"))
            await until(running.balancer.ledger.live)
        await until(lambda: running.idle)

        assert one.requests == []
        assert outcomes(running) == ["cancelled"]


async def test_leaving_with_the_answer_of_an_instance_says_nothing_of_its_health() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        for _ in range(5):
            one.play(Stall())
            count = len(one.requests)
            async with running.client() as client:
                await client.send(request("/api/generate", GENERATE))
                await one.seen(count + 1)
            await until(lambda: running.idle)

        (instance,) = running.balancer.fleet.instances()
        assert (instance.usable, instance.suspect, instance.running) == (True, False, 0)


async def test_client_that_leaves_during_an_upload_ends_it_at_the_instance() -> None:
    digest = "sha256:" + "0" * 64
    async with ScriptedInstance().running() as one, balancing(one) as running:
        async with running.client() as client:
            await client.send(request(f"/api/blobs/{digest}", b"half", "Content-Length: 1000"))
            seen = await one.seen(1)
        await until(seen.connection.closed.is_set)
        await until(lambda: running.idle)

        assert outcomes(running) == ["cancelled"]


async def test_client_that_leaves_ends_a_pull_at_the_instance() -> None:
    async with ScriptedInstance().running() as one, balancing(one) as running:
        one.play(Send(STREAMED + chunk(b'{"status":"pulling manifest"}\n')), Stall())
        async with running.client() as client:
            await client.send(request("/api/pull", {"model": "new"}))
            await client.head()
            (seen,) = one.requests
        await until(seen.connection.closed.is_set)


# -- clients that do not read

PIECE = b'{"response":"%b","done":false}\n' % (b"x" * 32_000)
MANY = 1_500
"""Pieces of some 48 MB together, far more than all sockets on the way hold."""


@pytest.mark.parametrize("path", ["/api/generate", "/api/pull"])
async def test_client_far_behind_is_cut_off_and_its_instance_freed(path: str) -> None:
    """Nothing is read from the client's side all the while: the cut must not wait for it. The instance
    stalls at the end, so only a cut can close its connection."""
    limits = {"stream_buffer_bytes": "1MiB"}
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT, limits=limits) as running:
        one.play(Send(STREAMED), *[Send(chunk(PIECE))] * MANY, Stall())
        async with running.client() as client:
            client.pause()
            await client.send(request(path, GENERATE))
            seen = await one.seen(1)

            await until(seen.connection.closed.is_set)
            await until(lambda: running.idle)

            assert (await running.ask("/api/generate", GENERATE)).status == 200


async def test_instance_is_free_as_soon_as_it_is_done_though_the_client_has_yet_to_read() -> None:
    limits = {"stream_buffer_bytes": "128MiB"}
    async with ScriptedInstance().running() as one, balancing(one, each=ONE_SLOT, limits=limits) as running:
        one.play(Send(STREAMED), *[Send(chunk(PIECE))] * MANY, Send(chunk(DONE) + END))
        async with running.client() as client:
            client.pause()
            await client.send(request("/api/generate", GENERATE))
            await one.seen(1)

            await until(lambda: one.requests[0].connection.sent_bytes > MANY * len(PIECE))
            await until(lambda: not running.balancer.dispatcher.leases)

            assert len(running.balancer.ledger.live()) == 1
            assert (await running.ask("/api/generate", GENERATE)).status == 200
            client.resume()
            answer = await client.answer()
            assert answer.whole
            assert answer.chunks == (*[PIECE] * MANY, DONE)


async def test_slow_client_holds_up_nobody_else() -> None:
    async with ScriptedInstance().running() as one, balancing(one, each={"slots": 4}) as running:
        one.play(Send(STREAMED), *[Send(chunk(PIECE))] * 100, Stall())
        one.otherwise = lambda _request: (ReadBody(), Send(chunked(LINE, DONE)))
        async with running.client() as slow:
            slow.pause()
            await slow.send(request("/api/generate", GENERATE))
            await one.seen(1)

            answers = await asyncio.gather(*(running.ask("/api/generate", GENERATE) for _ in range(20)))

            assert all(each.chunks == (LINE, DONE) for each in answers)
