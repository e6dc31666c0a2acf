"""When connections to instances are opened, used again, given up and closed."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from balancer.errors import BalancerError, ClientLeft, ConnectFailed, ConnectionLost, InstanceDown
from balancer.upstream.client import UpstreamRequest
from balancer.upstream.connection import Connection
from balancer.upstream.stream_memory import StreamMemory
from tests.fakes.asker import Asker, asking
from tests.fakes.running_balancer import until
from tests.fakes.scripted_instance import (
    Close,
    ReadBody,
    Reset,
    Send,
    Stall,
    Turn,
    Wait,
    chunk,
    head,
    whole,
)

BEGUN = head(200, "Transfer-Encoding: chunked") + chunk(b"first")


async def test_a_hundred_requests_in_a_row_take_one_connection() -> None:
    async with asking() as asker:
        for _ in range(100):
            await asker.take()

        assert (asker.pool.connects, len(asker.instance.connections)) == (1, 1)
        assert len(asker.instance.requests) == 100


async def test_requests_at_once_take_a_connection_each_and_keep_them() -> None:
    async with asking() as asker:
        for _ in range(3):
            held = asyncio.Event()
            for _ in range(8):
                asker.instance.play(Wait(held), Send(whole()))
            taking = [asyncio.create_task(asker.take()) for _ in range(8)]
            await until(lambda: asker.pool.open == 8 and asker.pool.idle == 0)
            held.set()
            await asyncio.gather(*taking)

        assert asker.pool.connects == 8
        assert asker.pool.idle == 8


async def test_connection_used_last_is_used_first() -> None:
    async with asking() as asker:
        held = asyncio.Event()
        asker.instance.play(Wait(held), Send(whole()))
        asker.instance.play(Send(whole()))
        first = asyncio.create_task(asker.take())
        await asker.instance.seen(1)
        await asker.take()
        held.set()
        await first
        await asker.take()

        assert asker.instance.requests[2].connection is asker.instance.requests[0].connection


@pytest.mark.parametrize("apart", [(), (Turn(),)])
@pytest.mark.parametrize("surplus", [whole(b'{"stolen":true}'), b"garbage", b"\r\nHTTP/1.1 200 OK\r\n\r\n"])
async def test_bytes_after_an_answer_never_show_up_in_another(
    apart: tuple[Turn, ...], surplus: bytes
) -> None:
    async with asking() as asker:
        asker.instance.play(Send(whole(b'{"own":true}') + (b"" if apart else surplus)))
        taken = await asker.take()
        if apart:
            await asker.instance.requests[0].connection.send(surplus)
        await until(lambda: asker.pool.open == 0)

        assert taken.pieces == (b'{"own":true}',)
        assert await asker.take_next() == b'{"next":true}'
        assert len(asker.instance.connections) == 2


async def test_line_end_after_an_answer_is_not_taken_for_one() -> None:
    async with asking() as asker:
        asker.instance.play(Send(whole(b"{}") + b"\r\n"))

        await asker.take()

        assert await asker.take_next() == b'{"next":true}'


async def test_kept_connection_that_the_instance_closed_is_replaced_in_silence() -> None:
    async with asking() as asker:
        asker.instance.play(Send(whole()), Close())
        await asker.take()
        await until(lambda: asker.pool.open == 0)

        assert await asker.take_next() == b'{"next":true}'
        assert (len(asker.instance.requests), asker.pool.connects) == (2, 2)


@pytest.mark.parametrize("end", [Close(), Reset()])
async def test_kept_connection_that_ends_under_a_request_is_replaced_in_silence(end: Close | Reset) -> None:
    """The instance's end of the idle connection and the request may cross each other."""
    async with asking() as asker:
        await asker.take()
        asker.instance.play(end)
        asker.instance.play(Send(whole(b'{"second":true}')))

        taken = await asker.take()

        assert taken.pieces == (b'{"second":true}',)
        assert [each.body for each in asker.instance.requests] == [b"{}"] * 3
        assert asker.pool.connects == 2


async def test_silent_try_is_made_once() -> None:
    async with asking() as asker:
        await asker.take()
        asker.instance.otherwise = lambda _request: (ReadBody(), Close())

        with pytest.raises(ConnectionLost):
            await asker.exchange()
        assert len(asker.instance.requests) == 3


async def test_new_connection_that_ends_before_an_answer_is_told() -> None:
    async with asking() as asker:
        asker.instance.play(Close())

        with pytest.raises(ConnectionLost):
            await asker.exchange()
        assert len(asker.instance.requests) == 1


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 200 OK\r\nContent-Le", head(103)])
async def test_request_that_got_a_byte_of_an_answer_is_not_sent_again_in_silence(part: bytes) -> None:
    async with asking() as asker:
        await asker.take()
        asker.instance.play(Send(part), Close())

        with pytest.raises(ConnectionLost):
            await asker.exchange()
        assert len(asker.instance.requests) == 2


async def test_connection_lost_before_its_first_use_is_told() -> None:
    async with asking() as asker:
        connection = await asker.pool.connect()
        await until(lambda: asker.instance.open_connections == 1)
        asker.instance.reset_all()
        await until(lambda: connection.closed)

        exchange = connection.begin(head_only=False, buffer_bytes=1 << 20, memory=StreamMemory(1 << 20))

        with pytest.raises(ConnectionLost):
            async with asyncio.timeout(5):
                await exchange.response()


async def test_refused_connection_is_told_as_such() -> None:
    async with asking() as asker:
        asker.instance.refuse()

        with pytest.raises(ConnectFailed) as told:
            await asker.exchange()
        assert told.value.refused


async def test_idle_connections_are_closed_after_a_while() -> None:
    async with asking(idle_seconds=0.05) as asker:
        await asker.take()
        await until(lambda: asker.pool.open == 0)

        assert asker.pool.idle == 0
        assert await asker.take_next() == b'{"next":true}'


# -- uploads


class Upload:
    """Pieces of a body, the next one given when the test says so."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.ended = False

    def give(self, *pieces: bytes | Exception | None) -> None:
        for piece in pieces:
            self._pieces.put_nowait(piece)

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            while (piece := await self._pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.ended = True

    def request(self, length: int | None = None) -> UpstreamRequest:
        return UpstreamRequest(
            method="POST", target="/api/blobs/x", headers=(), body=self.pieces(), length=length
        )


@pytest.mark.parametrize("length", [None, 6])
async def test_upload_goes_out_in_the_pieces_in_which_it_comes(length: int | None) -> None:
    async with asking() as asker:
        upload = Upload()
        upload.give(b"abc", b"def", None)

        await asker.take(upload.request(length))

        (request,) = asker.instance.requests
        assert request.body == b"abcdef"
        assert request.pieces == ([b"abc", b"def"] if length is None else [])
        assert request.header("content-length") == (None if length is None else "6")
        assert await asker.take_next() == b'{"next":true}'
        assert asker.pool.connects == 1


async def test_upload_takes_a_new_connection_since_it_cannot_be_sent_twice() -> None:
    async with asking() as asker:
        await asker.take()
        upload = Upload()
        upload.give(b"abc", None)

        await asker.take(upload.request())

        assert asker.pool.connects == 2


@pytest.mark.parametrize("length", [None, 1000])
async def test_early_answer_comes_through_while_the_upload_stands_still(length: int | None) -> None:
    async with asking() as asker:
        upload = Upload()
        upload.give(b"abc")
        asker.instance.play_early(Send(whole(b'{"known":true}', status=409)))

        taken = await asker.take(upload.request(length))

        assert taken.head.status == 409
        assert taken.pieces == (b'{"known":true}',)
        assert upload.ended
        assert await asker.take_next() == b'{"next":true}'
        assert len(asker.instance.connections) == 2


async def test_early_head_comes_through_while_the_instance_reads_no_more() -> None:
    async with asking() as asker:
        asker.instance.play_early(Send(BEGUN), Stall())
        large = UpstreamRequest(method="POST", target="/api/chat", headers=(), body=b"x" * 30_000_000)
        asker.instance.deaf = True

        exchange = await asker.exchange(large)

        assert await exchange.next_chunk() == b"first"
        exchange.cancel()


async def test_upload_that_breaks_off_ends_its_connection() -> None:
    async with asking() as asker:
        upload = Upload()
        upload.give(b"abc")
        uploading = asyncio.create_task(asker.exchange(upload.request()))
        request = await asker.instance.seen(1)

        upload.give(ClientLeft("gone"))

        with pytest.raises(ClientLeft):
            await uploading
        await until(request.connection.closed.is_set)


async def test_instance_that_leaves_during_a_still_upload_is_noticed() -> None:
    async with asking() as asker:
        upload = Upload()
        upload.give(b"abc")
        asker.instance.play_early(Close())

        with pytest.raises(ConnectionLost):
            await asker.exchange(upload.request())
        await until(lambda: upload.ended)


# -- ends from our side


async def test_cancelled_exchange_closes_its_connection() -> None:
    async with asking() as asker:
        asker.instance.play(Send(BEGUN), Stall())
        exchange = await asker.exchange()
        assert await exchange.next_chunk() == b"first"

        exchange.cancel()

        await until(asker.instance.connections[0].closed.is_set)
        assert (asker.pool.open, exchange.left) == (0, True)
        assert await asker.take_next() == b'{"next":true}'


async def test_leaving_before_the_head_closes_the_connection() -> None:
    async with asking() as asker:
        asker.instance.play(Stall())
        asking_task = asyncio.create_task(asker.exchange())
        request = await asker.instance.seen(1)

        asking_task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await asking_task
        await until(request.connection.closed.is_set)


async def test_cancelling_a_whole_answer_keeps_its_connection() -> None:
    async with asking() as asker:
        exchange = await asker.exchange()
        await until(lambda: asker.pool.idle == 1)

        exchange.cancel()

        assert await asker.take_next() == b'{"next":true}'
        assert asker.pool.connects == 1


async def test_abandoning_fails_what_has_no_head_and_spares_the_rest() -> None:
    async with asking() as asker:
        go_on = asyncio.Event()
        asker.instance.play(Send(BEGUN), Wait(go_on), Send(chunk(b"second") + b"0\r\n\r\n"))
        asker.instance.play(Stall())
        begun = await asker.exchange()
        silent = asyncio.create_task(asker.exchange())
        await asker.instance.seen(2)

        asker.client.abandon(asker.instance.url, "the instance went down")

        with pytest.raises(InstanceDown):
            await silent
        go_on.set()
        assert [await begun.next_chunk() for _ in range(3)] == [b"first", b"second", None]


async def test_abandoning_spares_an_answer_that_begins_at_that_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with asking() as asker:
        receive = Connection.on_chunk_complete

        def receive_and_go_down(connection: Connection) -> None:
            receive(connection)
            asker.client.abandon(asker.instance.url, "the instance went down")

        monkeypatch.setattr(Connection, "on_chunk_complete", receive_and_go_down)
        asker.instance.play(Send(BEGUN), Turn(), Send(chunk(b"second") + b"0\r\n\r\n"))
        exchange = await asker.exchange()

        assert [await exchange.next_chunk() for _ in range(3)] == [b"first", b"second", None]


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        ("/api/chat", "X-A", "b\r\nX-Evil: 1"),
        ("/api/chat", "X-A\nB", "b"),
        ("/api/chat HTTP/1.1\r\nX-Evil: 1", "X-A", "b"),
    ],
)
async def test_request_that_would_break_the_head_is_never_sent(target: str, name: str, value: str) -> None:
    async with asking() as asker:
        with pytest.raises(BalancerError):
            await asker.exchange(UpstreamRequest(method="POST", target=target, headers=((name, value),)))
        await _nothing_was_sent(asker)


async def _nothing_was_sent(asker: Asker) -> None:
    await until(lambda: asker.instance.open_connections == 0)
    assert asker.instance.requests == []


async def test_header_bytes_go_out_as_they_came() -> None:
    """Header values are text with each byte that is not UTF-8 as a surrogate, as the listener gives them."""
    async with asking() as asker:
        wire = "Grüße 世界".encode() + b" \xe9"
        value = wire.decode("utf-8", "surrogateescape")

        await asker.take(UpstreamRequest(method="POST", target="/x", headers=(("X-A", value),), body=b"{}"))

        assert b"X-A: " + wire + b"\r\n" in asker.instance.requests[0].raw_head
